"""Modules that a user names, as `arch` or `rules`. They are code, and run when they are imported."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from graphprune.passes.errors import ModelLoadError, RuleError, UsageError

__all__ = ["current_folder_importable", "import_function", "import_named", "import_rules", "one_line"]


def import_rules(name: str) -> ModuleType:
    """Import a module that registers rules for operators, `package.module`; one in the current folder is found, too.

    Raises:
        UsageError: that is no name of a module.
        RuleError: there is no such module, or importing it fails.
    """
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"`rules={name!r}` is no module: write package.module, without .py")
    with current_folder_importable():
        return import_named(name, "`rules`", RuleError)


def import_function(name: str, option: str) -> Callable[..., Any]:
    """Import a function, `package.module:function`; a module in the current folder is found, too.

    Raises:
        UsageError: that is no name of a function, there is no such module, or importing it fails.
    """
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{option}: {name!r} names no function: write package.module:function")
    with current_folder_importable():
        found = getattr(import_named(module, option, UsageError), function, None)
    if not callable(found):
        raise UsageError(f"{option}: {module} has no function {function}")
    return cast(Callable[..., Any], found)


def import_named(name: str, option: str, kind: type[ModelLoadError] | type[RuleError] | type[UsageError]) -> ModuleType:
    """Import a module that was named with the setting `option`.

    Raises:
        kind: there is no such module, or importing it fails.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's own code: it may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise kind(f"{option}: there is no module {name}, neither installed nor in the current folder") from error
        raise kind(f"{option}: importing {name} failed: {one_line(error)}") from error


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let the user's own modules be imported, as `python script.py` does and console scripts do not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    # torch follows the reason with advice that does not fit here.
    return f"{type(error).__name__}: {lines[0].split('. This is an internal')[0]}" if lines else type(error).__name__

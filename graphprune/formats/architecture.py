"""Networks by name: what `arch` says.

An architecture is `package.module:factory` or `package.module:factory(num_classes=10, width=0.5)`: what is
called to build the network, and literal keyword arguments for it.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphprune.formats.user_code import current_folder_importable, import_named, one_line
from graphprune.passes.errors import ModelLoadError, UsageError

ARCH_FORM = "package.module:factory or package.module:factory(num_classes=10, width=0.5)"


@dataclass(frozen=True)
class Architecture:
    """What builds a network: a factory's place and its keyword arguments."""

    module: str
    factory: str
    arguments: dict[str, Any]


def parse_arch(arch: str) -> Architecture:
    """Return the parts of `package.module:factory(name=literal, ...)`. Nothing is imported or run.

    Raises:
        UsageError: it has another form.
    """
    module, colon, call = arch.strip().partition(":")
    if not colon or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"`arch={arch!r}` has the wrong form: write {ARCH_FORM}")
    try:
        tree = ast.parse(call.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"`arch={arch!r}` is not readable after the colon: write {ARCH_FORM}") from error
    arguments: dict[str, Any] = {}
    if isinstance(tree, ast.Call):
        if tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise UsageError(f"`arch={arch!r}`: arguments need names, as in {ARCH_FORM}")
        arguments = {str(keyword.arg): _literal(keyword.value, arch) for keyword in tree.keywords}
        tree = tree.func
    if not isinstance(tree, ast.Name):
        raise UsageError(f"`arch={arch!r}`: after the colon comes one name, as in {ARCH_FORM}")
    return Architecture(module, tree.id, arguments)


def resolve_arch(arch: str) -> nn.Module:
    """Return the network that an architecture builds, with fresh weights.

    Modules in the current folder are found, too. Importing and calling the factory runs its code: name
    only what you trust.

    Raises:
        UsageError: the architecture is malformed.
        ModelLoadError: the module or factory does not exist, fails, or gives no nn.Module.
    """
    wanted = parse_arch(arch)
    with current_folder_importable():
        factory = _find_factory(wanted)
        try:
            model = factory(**wanted.arguments)
        except (Exception, SystemExit) as error:  # the user's own code: it may raise anything
            raise ModelLoadError(f"`arch={arch!r}`: calling {wanted.factory} failed: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelLoadError(f"`arch={arch!r}`: {wanted.factory} gave a {type(model).__name__}, not an nn.Module")
    return model.float().eval()


def _find_factory(wanted: Architecture) -> Callable[..., Any]:
    module = import_named(wanted.module, "`arch`", ModelLoadError)
    factory = getattr(module, wanted.factory, None)
    if not callable(factory):
        names = [name for name in getattr(module, "__all__", dir(module)) if not name.startswith("_")]
        raise ModelLoadError(
            f"`arch`: {wanted.module} has no factory {wanted.factory}; it has {', '.join(names[:12]) or 'no names'}"
        )
    return factory


def _literal(node: ast.expr, arch: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UsageError(f"`arch={arch!r}`: {ast.unparse(node)} is no literal such as 10, 0.5 or 'cifar'") from error

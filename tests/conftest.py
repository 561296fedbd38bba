"""Makes `zoo` and `small` importable from every test, and keeps measured latencies out of the user's cache.

What torch builds anew for every export, and is always the same, is built once: without that an export of the small
networks of the tests takes twice as long. And what Python compiles is kept, whatever the environment says: two
processes of tests start some forty others, and each would compile the project, and the tests, from their text.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _built_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _build_functions_once(patch)
        _look_for_operators_once(patch)
        yield


def _build_functions_once(patch: pytest.MonkeyPatch) -> None:
    """The table of ONNX functions is parsed from source text at each export; every export has a copy of its own."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # another version of torch
        return
    build: Callable[..., Any] = ONNXRegistry.from_torchlib.__func__
    built: dict[tuple[Any, ...], Any] = {}

    def from_torchlib(cls: Any, *opset: int, **named: int) -> Any:
        key = (*opset, *named.items())
        if key not in built:
            built[key] = build(cls, *opset, **named)
        copy = cls()
        copy.__dict__.update(built[key].__dict__)
        copy.functions = {target: list(found) for target, found in built[key].functions.items()}
        return copy

    patch.setattr(ONNXRegistry, "from_torchlib", classmethod(from_torchlib))


def _look_for_operators_once(patch: pytest.MonkeyPatch) -> None:
    """At each capture torch looks for operators to break up, once a name space; here it does if there are new ones."""
    try:
        from torch import _C
        from torch._export import utils

        look, registered = utils._materialize_cpp_cia_ops, _C._dispatch_get_registrations_for_dispatch_key
    except (ImportError, AttributeError):
        return
    seen: list[list[str]] = []

    def look_once() -> None:
        now = registered("CompositeImplicitAutograd")
        if seen != [now]:
            look()
            seen[:] = [now]

    patch.setattr(utils, "_materialize_cpp_cia_ops", look_once)


@pytest.fixture
def fill_disk(monkeypatch):
    """From when it is called on, whatever is written finds no space; called with False, it does again."""
    opened = Path.open

    def full(self, mode="r", *arguments, **options):
        return opened(Path("/dev/full") if "w" in mode else self, mode, *arguments, **options)

    return lambda is_full=True: monkeypatch.setattr(Path, "open", full if is_full else opened)

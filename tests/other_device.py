"""A device that is not the CPU, for machines that have none: tensors that keep their values on the CPU in secret.

Inside `other_device()` a tensor that is moved to "meta" behaves as one on an accelerator does: it meets tensors of the
CPU only in copies and as an index, has no `numpy()`, and parameters of a moved module are other objects. What a
program forgot to move is found that way; what a real device computes is not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

#: Its name: a kind of device that every build of torch knows.
NAME = "meta"
#: Operators that take tensors of both.
_COPIES = (aten._to_copy.default, aten.copy_.default)
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class _There(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_There":
        made: _There = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=NAME,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"there: {self.held}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = _There(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees to tensors that are made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, _There) and tensor.ndim]
    if there and strangers and func not in _COPIES + _INDEXED:
        raise RuntimeError(f"tensors on two devices meet in {func}")
    if func in _INDEXED and not isinstance(args[0], _There) and there:
        raise RuntimeError(f"indices are on another device than what they index, in {func}")
    asked = kwargs.get("device")
    if func is aten.copy_.default:
        is_there = isinstance(args[0], _There)
    else:
        is_there = bool(there) if asked is None else torch.device(asked).type == NAME
    own = {**kwargs, "device": torch.device("cpu")} if asked is not None else dict(kwargs)
    args_here, kwargs_here = tree_map(lambda leaf: leaf.held if isinstance(leaf, _There) else leaf, (args, own))
    result = func(*args_here, **kwargs_here)
    if not is_there:
        return args[0] if func is aten.copy_.default else result
    moved = tree_map(lambda leaf: _There(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, dict(kwargs), moved) if there else moved


@contextmanager
def other_device() -> Iterator[str]:
    """Make the device; gives its name."""
    with _Mode():
        yield NAME

"""Letting go of weights: what has been read from a mapped file need not stay in memory."""

import mmap
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.operators import Op
from graphprune.passes.channels.value import Value

#: Bytes; smaller arrays are not worth it.
_LARGE = 1 << 18


def put_aside(array: NDArray[Any]) -> None:
    """Give back the memory of an array that is mapped from a file; it is read again if somebody looks at it.

    Else what has been read would stay beside what is computed from it, for as long as the file is mapped.
    """
    if array.nbytes < _LARGE:
        return
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(owner, "madvise"):
        return
    start = array.ctypes.data - np.frombuffer(owner, dtype=np.uint8).ctypes.data
    before = start % mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, start - before, array.nbytes + before)


def let_go(model: ir.Model) -> None:
    """Free the weights of a model that is done with; a graph refers to itself, so that they would stay otherwise."""
    for value in model.graph.initializers.values():
        value.const_value = None
    for node in model.graph:
        node.attributes.clear()


class Forget:
    """Values and operators of an analysis without the numbers of large weights, which it needs no more."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Value, Value]] = {}

    def numbers(self, value: Value) -> Value:
        """The value without them; the same for the same one."""
        if value.data is None or value.data.nbytes < _LARGE:
            return value
        return self._known.setdefault(id(value), (value, replace(value, data=None)))[1]

    def numbers_of(self, op: Op) -> Op:
        """The operator with its inputs without them."""
        return replace(op, inputs={name: self._any(value) for name, value in op.inputs.items()})

    def _any(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._any(item) for item in value]
        return self.numbers(value) if isinstance(value, Value) else value

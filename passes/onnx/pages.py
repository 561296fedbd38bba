"""Letting go of weights: what has been read from a mapped file need not stay in memory."""

import mmap
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def put_aside(array: NDArray[Any]) -> None:
    """Give back the memory of an array that is mapped from a file; it is read again if somebody looks at it.

    For tensors that have been replaced: their pages would stay beside what took their place.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
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

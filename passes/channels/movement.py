"""Data movements on compressed arrays: sizes 1 stand for dimensions along which nothing differs.

Each function returns a `Move`: a function of an array. The same move is applied to labels, zeros and, where
known, numbers, so what happens to the channels is by construction what happens to the data.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.value import Move

Shape = tuple[int, ...]


def permute(dims: Sequence[int]) -> Move:
    """Dimension i of the result is dimension `dims[i]` of the argument."""
    order = tuple(dims)
    return lambda array: array.transpose(order)


def expand(in_shape: Shape, out_shape: Shape) -> Move:
    """Broadcast to `out_shape`: nothing to do for a compressed array but new leading dimensions."""
    lead = len(out_shape) - len(in_shape)
    return lambda array: array.reshape((1,) * lead + array.shape)


def reshape_blocks(in_shape: Shape, out_shape: Shape) -> list[tuple[range, range]]:
    """Split a reshape into the smallest independent blocks of (input dimensions, output dimensions).

    Example:
        >>> reshape_blocks((2, 8, 4, 4), (2, 2, 4, 16))
        [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]
    """
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(in_shape) or j < len(out_shape):
        i0, j0 = i, j
        left = in_shape[i] if i < len(in_shape) else 1
        right = out_shape[j] if j < len(out_shape) else 1
        i, j = min(i + 1, len(in_shape)), min(j + 1, len(out_shape))
        while left != right:
            if left < right:
                left, i = left * in_shape[i], i + 1
            else:
                right, j = right * out_shape[j], j + 1
        # sizes 1 that follow belong to the block before them, so that a block is never empty on one side
        if i == len(in_shape) and all(size == 1 for size in out_shape[j:]):
            j = len(out_shape)
        if j == len(out_shape) and all(size == 1 for size in in_shape[i:]):
            i = len(in_shape)
        blocks.append((range(i0, i), range(j0, j)))
    return blocks


def reshape(in_shape: Shape, out_shape: Shape) -> Move:
    """Row-major reshape. Only blocks of dimensions along which the array differs are written out."""
    if prod(in_shape) != prod(out_shape) or 0 in in_shape:
        raise ValueError(f"cannot reshape {in_shape} to {out_shape}")
    blocks = reshape_blocks(in_shape, out_shape)

    def move(array: NDArray[Any]) -> NDArray[Any]:
        full: list[int] = []
        result: list[int] = []
        for source, target in blocks:
            if all(array.shape[d] == 1 for d in source):
                full.extend(1 for _ in source)
                result.extend(1 for _ in target)
            else:
                full.extend(in_shape[d] for d in source)
                result.extend(out_shape[d] for d in target)
        return np.broadcast_to(array, full).reshape(result)

    return move


def slices(ranges: Mapping[int, tuple[int, int, int]]) -> Move:
    """`array[start:stop:step]` along each dimension of `ranges`."""

    def move(array: NDArray[Any]) -> NDArray[Any]:
        index = [slice(None)] * array.ndim
        for dim, (start, stop, step) in ranges.items():
            if array.shape[dim] > 1:
                index[dim] = slice(start, stop if stop >= 0 or step > 0 else None, step)
        return array[tuple(index)]

    return move


def select(dim: int, index: int) -> Move:
    """One slice along `dim`, which disappears."""
    return lambda array: array.take(index if array.shape[dim] > 1 else 0, axis=dim)


def take(dim: int, index: NDArray[np.int64]) -> Move:
    """`index` of any rank picks slices along `dim`, which gives way to the dimensions of `index`."""

    def move(array: NDArray[Any]) -> NDArray[Any]:
        if array.shape[dim] > 1:
            return np.take(array, index, axis=dim)
        shape = array.shape[:dim] + (1,) * index.ndim + array.shape[dim + 1 :]
        return array.reshape(shape)

    return move


def flip(dims: Sequence[int]) -> Move:
    """Reverse along `dims`."""
    return lambda array: np.flip(array, tuple(dims))


def roll(shifts: Sequence[int], dims: Sequence[int]) -> Move:
    """Cyclic shift along `dims`; a no-op where nothing differs."""
    return lambda array: np.roll(array, tuple(shifts), tuple(dims))


def tile(in_shape: Shape, repeats: Sequence[int]) -> Move:
    """Repeat the whole tensor along each dimension (`numpy.tile` with as many repeats as result dimensions)."""
    lead = len(repeats) - len(in_shape)

    def move(array: NDArray[Any]) -> NDArray[Any]:
        array = array.reshape((1,) * lead + array.shape)
        return np.tile(array, [n if size > 1 else 1 for n, size in zip(repeats, array.shape, strict=True)])

    return move


def repeat_each(dim: int, count: int) -> Move:
    """Every slice along `dim` is repeated `count` times in a row."""
    return lambda array: array if array.shape[dim] == 1 else np.repeat(array, count, axis=dim)

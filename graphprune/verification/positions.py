"""An output's numbers by position: over all samples, but apart wherever their scales may be unlike.

    output (samples, d1, d2, ...)      positions (d1, d2, ...)
    scale at a position = min over the dimensions k of: the largest value at its index along k

A channel of scores beside one of coordinates, the boxes of one grid beside those of a coarser one: along some dimension
every position lies in a slice that holds nothing larger than its own kind does. Which dimension that is need not be
known.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["Fold", "binding_dimension", "local_scale", "rows_at_a_time"]

_AT_ONCE = 1 << 22  # elements


def local_scale(largest: np.ndarray) -> np.ndarray:
    """The scale at every position: the largest value of the slice through it in which that is smallest.

    Args:
        largest: (d1, d2, ...) the largest absolute value at each position.
    """
    if largest.ndim <= 1:
        return largest
    found = largest.max(axis=tuple(range(1, largest.ndim)), keepdims=True)
    for axis in range(1, largest.ndim):
        found = np.minimum(found, largest.max(axis=_all_but(axis, largest.ndim), keepdims=True))
    return found


def binding_dimension(largest: np.ndarray, at: tuple[int, ...]) -> int:
    """The dimension whose slice gives the scale at the position `at`."""
    slices = [largest.take(index, axis=axis).max() for axis, index in enumerate(at)]
    return int(np.argmin(slices))


def _all_but(axis: int, count: int) -> tuple[int, ...]:
    return tuple(other for other in range(count) if other != axis)


def rows_at_a_time(array: np.ndarray) -> int:
    """How many samples of an output to work on at once, so that what is computed from them stays small."""
    return max(1, _AT_ONCE // max(1, array.size // max(1, len(array))))


class Fold:
    """Brings arrays of positions together that come batch by batch, though a size may differ (a number of objects).

    Along a dimension whose size has changed, positions are not told apart from then on.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None

    def common(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape from now on, with arrays of `shape` among those seen."""
        if self.shape is None:
            self.shape = shape
        elif len(self.shape) != len(shape):
            self.shape = ()
        else:
            self.shape = tuple(a if a == b else 1 for a, b in zip(self.shape, shape, strict=True))
        return self.shape

    @staticmethod
    def to(array: np.ndarray, shape: tuple[int, ...], reduce: Callable[..., np.ndarray]) -> np.ndarray:
        """An array brought to the shape by `reduce` (`np.max`, `np.sum`)."""
        if array.shape == shape:
            return array
        if array.ndim != len(shape):
            return np.asarray(reduce(array)) if not shape else np.full(shape, reduce(array))
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and array.shape[axis] != 1)
        return np.asarray(reduce(array, axis=axes, keepdims=True)) if axes else array

    @staticmethod
    def to_largest(array: np.ndarray, beside: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """An array brought to the shape by its largest elements, and what stands at the same places of another one."""
        if array.shape == shape:
            return array, beside
        axes = [axis for axis in range(array.ndim) if array.ndim != len(shape) or shape[axis] != array.shape[axis]]
        kept = [axis for axis in range(array.ndim) if axis not in axes]
        order = [*kept, *axes]
        flat, other = (v.transpose(order).reshape(*(array.shape[axis] for axis in kept), -1) for v in (array, beside))
        best = flat.argmax(axis=-1)[..., None]
        return tuple(np.take_along_axis(v, best, axis=-1).reshape(shape) for v in (flat, other))  # type: ignore[return-value]

"""What the channel analysis computes with in place of tensors.

A tensor is described by *facets*. A facet is an array of labels, one for each element, kept at size 1
along every dimension along which the labels do not differ. An activation of a CNN has one facet, which
differs along its channel dimension; a convolution's weight has one for each of its dimensions (output
channels, input channels, kernel). An element belongs to the channels that its facets name, and goes
when any of them goes. A dimension along which no facet differs cannot be cut.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Labels, Mask

#: A function that moves the elements of an array, given in compressed form: sizes 1 stand for
#: dimensions along which nothing differs.
Move = Callable[[NDArray[Any]], NDArray[Any]]


def spread(zero: Mask | bool, shape: tuple[int, ...]) -> Mask:
    """A statement on zeros for each of the labels."""
    if isinstance(zero, np.ndarray):
        return zero if zero.shape == shape else np.broadcast_to(zero, shape)
    return np.full(shape, zero, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Facet:
    """Labels of a tensor's elements, and whether a removed element is zero beforehand.

    Attributes:
        labels: rank of the tensor; each dimension the tensor's size or 1.
        zero: same shape. What it says depends on the question asked (see `Analysis`): "this slice
            becomes zero when the group's parameters do" or "this slice is zero in the given weights".
    """

    labels: Labels
    zero: Mask

    def map(self, move: Move) -> "Facet":
        """The facet after a data movement."""
        return Facet(move(self.labels), move(self.zero))

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions that are held at full size."""
        return tuple([dim for dim, size in enumerate(self.labels.shape) if size > 1])

    def with_zero(self, zero: Mask | bool) -> "Facet":
        """The same labels with another statement on zeros (broadcast to the labels' shape)."""
        return Facet(self.labels, spread(zero, self.labels.shape))


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the analysis.

    Attributes:
        shape: concrete sizes.
        facets: see the module's text.
        constant: made of parameters, buffers and literals alone.
        data: the numbers, where they are known and needed (ONNX constants; small integer tensors).
        parameter: name of the parameter or buffer that this value is, unchanged.
        zero_point: of a quantized tensor, what tells its zero point from others, where that is not 0: the facets'
            `zero` then says that elements stand at the zero point. None where zero is zero.
    """

    shape: tuple[int, ...]
    facets: tuple[Facet, ...] = ()
    constant: bool = False
    data: NDArray[Any] | None = None
    parameter: str | None = None
    zero_point: Hashable | None = None

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def moved(self, shape: tuple[int, ...], move: Move) -> "Value":
        """The value after a data movement that yields `shape`."""
        facets = tuple(facet.map(move) for facet in self.facets)
        data = None if self.data is None else np.broadcast_to(move(self.data), shape)
        return replace(self, shape=shape, facets=facets, data=data, parameter=None)

    def with_facets(self, facets: tuple[Facet, ...]) -> "Value":
        """The same tensor with other facets."""
        return replace(self, facets=facets, data=None, parameter=None)

    def along(self, dim: int) -> tuple[Facet, ...]:
        """Facets whose labels differ along `dim` (which may be negative)."""
        dim %= max(self.rank, 1)
        return tuple([facet for facet in self.facets if facet.labels.shape[dim] > 1])

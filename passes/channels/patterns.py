"""Couplings that most operators of one's own follow, for `register_rule`, and the words to write another in.

| pattern | for operators that |
|---|---|
| `elementwise` | treat every position alone: activations, sums, products, gates |
| `per_channel` | treat every channel alone, with parameters of one number a channel: PReLU, scale and shift |
| `convolution` | sum over the input's channels with a weight (out, in / groups, ...): any kind of convolution |
| `linear` | sum over the last dimension with a weight (out, in) |
| `pooling` | mix positions and no channels: pooling, resampling, blurring |
| `moved` | give elements of their input as they are: shuffles, shifts, layouts |
| `refused` | nobody can remove channels around, with the reason that the report gives |

A coupling of one's own is a function of `Analysis` and `Op` that returns a `Value` for each result; our own rules in
`graphprune/passes/channels/rules` are such functions, and may be used as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Analysis as Analysis
from graphprune.passes.channels.analysis import Axis as Axis
from graphprune.passes.channels.coupling import Combine as Combine
from graphprune.passes.channels.coupling import all_zero as all_zero
from graphprune.passes.channels.coupling import any_zero as any_zero
from graphprune.passes.channels.coupling import broadcast as broadcast
from graphprune.passes.channels.coupling import concatenate as concatenate
from graphprune.passes.channels.coupling import first_zero as first_zero
from graphprune.passes.channels.coupling import never_zero as never_zero
from graphprune.passes.channels.operators import Binding as Binding
from graphprune.passes.channels.operators import Couple, Resize, Shapes
from graphprune.passes.channels.operators import Cut as Cut
from graphprune.passes.channels.operators import Op as Op
from graphprune.passes.channels.rules import conv, norm, reduce
from graphprune.passes.channels.rules.elementwise import elementwise as _elementwise
from graphprune.passes.channels.rules.linear import linear as _linear
from graphprune.passes.channels.value import Facet as Facet
from graphprune.passes.channels.value import Value as Value


@dataclass(frozen=True)
class Pattern:
    """What a rule says besides the operators that it is for; the fields are those of `Rule` and `Binding`."""

    couple: Couple
    inputs: tuple[str, ...] = ("input",)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    resize: Resize | None = None
    shapes: Shapes | None = None
    sums: Callable[[Op], int] | None = None
    pointwise: bool = False
    moves: bool = False


def elementwise(zero: Combine = never_zero) -> Pattern:
    """For operators that treat every position alone; operands may be broadcast.

    Args:
        zero: where the result is zero. `first_zero`: where the first operand is (activations with f(0) = 0, quotients);
            `any_zero`: where one is (products); `all_zero`: where all are (sums, maxima); `never_zero`: nowhere for
            sure, which is always right, and makes channels that are summed over without a weight count as inexact.
    """
    return Pattern(_elementwise(lambda op: zero), inputs=("input...",), shapes=_broadcast_shape, pointwise=True)


def per_channel(*parameters: str, zero: Combine = never_zero, dim: int = 1) -> Pattern:
    """For operators that treat every channel along `dim` alone, with parameters of one number a channel.

    Args:
        parameters: names of the inputs that hold them, in the operator's order after its first.
        zero: where the result is zero, given the input and the parameters in order; see `elementwise`.
        dim: the dimension of the channels.
    """
    return Pattern(norm.per_channel(parameters, dim, zero), inputs=("input", *parameters), shapes=_first_shape)


def convolution(*, transposed: bool = False) -> Pattern:
    """For operators that sum over the input's channels with a weight, as a convolution does.

    Inputs are `input` (batch, channels, ...), `weight` (out, in / groups, ...) or transposed (in, out / groups, ...),
    and `bias` (out,), which may be absent. An argument `groups` is understood, and follows where whole groups go.
    """
    fixed = {"groups": 1, "transposed": transposed}
    inputs = ("input", "weight", "bias")
    return Pattern(conv.convolution, inputs, fixed, resize=conv.resize_groups, sums=conv.channel_dim)


def linear() -> Pattern:
    """For operators that sum over the last dimension: `input` (..., in), `weight` (out, in), `bias` (out,) or none."""
    return Pattern(_linear, ("input", "weight", "bias"), shapes=_linear_shape, sums=lambda op: len(op.shape) - 1)


def pooling(spatial: int = 2) -> Pattern:
    """For operators that mix the last `spatial` dimensions of each channel, and give zeros for zeros."""
    return Pattern(reduce.spatial, fixed={"spatial": spatial})


def moved(function: Callable[[NDArray[Any], Op], NDArray[Any]]) -> Pattern:
    """For operators that give elements of their input as they are, in another order or place.

    Args:
        function: what the operator does, in numpy: from an array of the input's shape, and the operator with its
            arguments (`op.attrs`), to one of the result's shape. It is run on the labels of the channels.
    """

    def couple(analysis: Analysis, op: Op) -> list[Value]:
        x = op.value("input")
        facets = [Facet(*(_run(function, array, x.shape, op) for array in (f.labels, f.zero))) for f in x.facets]
        return [Value(op.shape, tuple(facets), constant=x.constant)]

    def shapes(op: Op) -> Sequence[tuple[int, ...]]:
        return [function(np.zeros(op.value("input").shape, dtype=np.int64), op).shape]

    return Pattern(couple, shapes=shapes, moves=True)


def refused(reason: str) -> Pattern:
    """For operators around which no channel can be removed; the report gives `reason`."""

    def couple(analysis: Analysis, op: Op) -> list[Value]:
        for value in op.values():
            analysis.freeze_value(value, op, reason)
        return [Value(shape) for shape in op.out_shapes]

    return Pattern(couple, inputs=("input...",))


def _run(
    function: Callable[[NDArray[Any], Op], NDArray[Any]], array: NDArray[Any], shape: tuple[int, ...], op: Op
) -> NDArray[Any]:
    """What the function makes of an array in compressed form; all of it must come out of the array.

    Raises:
        ValueError: it has another shape than the operator's result, or holds what was not in the array.
    """
    number = np.broadcast_to(np.arange(array.size).reshape(array.shape) + 1, shape)
    places = np.asarray(function(number, op)) - 1
    if places.shape != op.shape:
        raise ValueError(f"its function gives the shape {places.shape}, and the operator {op.shape}")
    if places.dtype.kind not in "iu" or places.min(initial=0) < 0 or places.max(initial=0) >= array.size:
        raise ValueError("its function gives elements that are none of its input's")
    return array.ravel()[places]


def _first_shape(op: Op) -> Sequence[tuple[int, ...]]:
    return [op.value("input").shape]


def _broadcast_shape(op: Op) -> Sequence[tuple[int, ...]]:
    return [np.broadcast_shapes(*(value.shape for value in op.values()))]


def _linear_shape(op: Op) -> Sequence[tuple[int, ...]]:
    return [(*op.value("input").shape[:-1], op.value("weight").shape[0])]

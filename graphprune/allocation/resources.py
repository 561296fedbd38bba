"""What budgets limit, as sums of functions of one or two lengths: the constraints of the knapsack.

    cost(w) = constant + sum over layers l of  f_l( n_a(w), n_b(w) )

The time of a convolution depends on the channels that it reads and writes, and so do its multiply-accumulates.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from graphprune.allocation.problem import LATENCY, Problem
from graphprune.widths import Axis, axis_of

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Layer", "layers_of", "limit_of"]


@dataclass(frozen=True)
class Layer:
    """A summand of a cost: a function of the lengths of up to two axes."""

    axes: tuple[Axis, ...]
    cost: Callable[[tuple[float, ...]], float]


def layers_of(problem: Problem, unit: str) -> list[Layer]:
    """The summands of a cost in the unit of its budget."""
    return _latency(problem) if unit == LATENCY else _counted(problem.graph, unit)


def limit_of(problem: Problem, unit: str) -> float:
    """What the sum of `layers_of` may come to within the budget."""
    budget = problem.budgets[unit]
    return problem.latency.summed_share(budget) if unit == LATENCY and problem.latency is not None else budget


def _latency(problem: Problem) -> list[Layer]:
    model = problem.latency
    assert model is not None, "a budget in latency needs a latency model"
    dense = model.dense_seconds
    number = Counter((segment.kind, segment.axes) for segment in model.segments)
    return [
        Layer(axes, partial(_times, times / dense, model.curves[kind].at)) for (kind, axes), times in number.items()
    ]


def _times(factor: float, function: Callable[[tuple[float, ...]], float], lengths: tuple[float, ...]) -> float:
    return factor * function(lengths)


def _counted(graph: "ChannelGraph", unit: str) -> list[Layer]:
    """Products of lengths; of more than two that can change, the others are taken as they are."""
    sizes = np.array([len(s.groups) for s in graph.sets])
    total: dict[tuple[tuple[Axis, int], ...], float] = {}
    for term in graph.cost.terms(unit):
        powers: Counter[Axis] = Counter()
        factor = term.factor
        for axis in (axis_of(ids, graph.set_of, sizes, counts) for ids, counts in term.weighted_axes()):
            if axis.terms and (axis in powers or len(powers) < 2):
                powers[axis] += 1
            else:
                factor *= axis.length(sizes)
        key = tuple(sorted(powers.items(), key=lambda item: (item[0].terms, item[0].fixed)))
        total[key] = total.get(key, 0.0) + factor
    return [
        Layer(tuple(axis for axis, _ in key), partial(_product, factor, tuple(power for _, power in key)))
        for key, factor in total.items()
    ]


def _product(factor: float, powers: tuple[int, ...], lengths: tuple[float, ...]) -> float:
    result = factor
    for length, power in zip(lengths, powers, strict=True):
        result *= length**power
    return result

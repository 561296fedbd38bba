"""Widths that lie on the staircase: those than which no wider one is as fast."""

import numpy as np

from graphprune.allocation.choices import Choice, choices_of
from graphprune.allocation.problem import LATENCY, Problem
from graphprune.allocation.resources import Layer, layers_of

__all__ = ["on_steps", "open_choices"]

_OTHERS = (1.0, 0.5)  # shares of their widths that the other sets are looked at with
_CLEARLY = 0.98  # of the time of a wider one
_EVERY = 10_000


def open_choices(problem: Problem) -> list[Choice]:
    """For every set all widths that it may have: any, or where latency matters those on the staircase."""
    if LATENCY in problem.budgets or problem.is_on_steps:
        choices = choices_of(problem, _EVERY)
        return on_steps(problem, choices) if problem.is_on_steps else choices
    return choices_of(problem, None)


def on_steps(problem: Problem, choices: list[Choice]) -> list[Choice]:
    """The choices without the widths that are no faster than a wider one of the same set."""
    layers = layers_of(problem, LATENCY)
    touching: list[list[Layer]] = [[] for _ in choices]
    for layer in layers:
        for index in {index for axis in layer.axes for index, _ in axis.terms}:
            touching[index].append(layer)
    return [_filtered(choice, index, choices, touching[index]) for index, choice in enumerate(choices)]


def _filtered(choice: Choice, index: int, choices: list[Choice], layers: list[Layer]) -> Choice:
    times = []
    for share in _OTHERS:
        widths = np.array([_at(other, share) for other in choices], dtype=float)
        times.append([_time(layers, widths, index, width) for width in choice.widths])
    mean = np.mean(times, axis=0)
    kept: list[int] = []
    least = np.inf
    for width, seconds in zip(reversed(choice.widths), reversed(mean.tolist()), strict=True):
        if not kept or seconds < _CLEARLY * least:
            kept.append(width)
            least = seconds
    return Choice(choice.order, choice.lost, tuple(reversed(kept)))


def _at(choice: Choice, share: float) -> int:
    """The width nearest to a share of the widest."""
    return min(choice.widths, key=lambda width: abs(width - share * choice.widths[-1]))


def _time(layers: list[Layer], widths: np.ndarray, index: int, width: int) -> float:
    trial = widths.copy()
    trial[index] = width
    return sum(layer.cost(tuple(axis.length(trial) for axis in layer.axes)) for layer in layers)

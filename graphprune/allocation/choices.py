"""The widths that each set of groups may get, and what is lost at each: the items of the knapsack.

Of a set the groups with the lowest scores go first, so a width says which groups stay.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.latency.sampling import lattice_of
from graphprune.runtime.machine import machine_facts

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import GroupSet

__all__ = ["Choice", "choices_of", "filled", "removed_at"]


@dataclass(frozen=True)
class Choice:
    """The widths of one set.

    Attributes:
        order: its groups, those that go first first.
        lost: (width + 1,) sum of scores of the groups that go when so many are kept.
        widths: what it may keep, ascending.
    """

    order: np.ndarray
    lost: np.ndarray
    widths: tuple[int, ...]

    def removed(self, width: int) -> np.ndarray:
        """The groups that go when `width` are kept."""
        return self.order[: len(self.order) - width]

    def nearest(self, width: float) -> int:
        """The width nearest to some length; of two as near, the narrower."""
        at = bisect_left(self.widths, width)
        around = self.widths[max(0, at - 1) : at + 1]
        return min(around, key=lambda found: abs(found - width))

    def wider(self, width: int) -> int:
        """The next wider width, or the same where there is none."""
        at = bisect_right(self.widths, width)
        return self.widths[at] if at < len(self.widths) else width

    def narrower(self, width: int) -> int:
        """The next narrower width, or the same where there is none."""
        at = bisect_left(self.widths, width)
        return self.widths[at - 1] if at > 0 else width

    def without_empty(self) -> "Choice":
        """The same without width 0, where there is another."""
        return replace(self, widths=tuple(width for width in self.widths if width > 0) or self.widths)

    @property
    def losses(self) -> np.ndarray:
        """What is lost at each of `widths`."""
        return self.lost[list(self.widths)]


def choices_of(problem: Problem, most: int | None) -> list[Choice]:
    """For every set, not many more than `most` widths: where kernels are quick, or multiples of `limits.align`.

    None asks for every width, or every multiple.
    """
    block = problem.latency.block if problem.latency is not None else machine_facts().conv_block
    return [_choice(problem, group_set, block, most) for group_set in problem.graph.sets]


def removed_at(problem: Problem, choices: Sequence[Choice], widths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Mask of the groups that go when the sets keep `widths`, (n_sets,); those that are gone already among them."""
    removed = problem.gone.copy()
    for choice, width in zip(choices, widths, strict=True):
        removed[choice.removed(int(width))] = True
    return removed


def filled(
    problem: Problem, choices: Sequence[Choice], widths: np.ndarray, rank: Callable[[int, int], tuple[float, ...]]
) -> np.ndarray:
    """(n_sets,) widths, wider a step at a time until no further step fits into every budget.

    Args:
        problem: the budgets.
        choices: the widths that each set may have.
        widths: where to begin. Sets that are gone stay so.
        rank: of a set at a width; the highest is widened first.
    """
    widths, candidates = widths.copy(), {index for index, width in enumerate(widths) if width > 0}
    while candidates:
        index = max(candidates, key=lambda at: (*rank(at, int(widths[at])), -at))
        step = widths.copy()
        step[index] = choices[index].wider(int(widths[index]))
        if step[index] > widths[index] and problem.fits(~removed_at(problem, choices, step)):
            widths = step
        else:
            candidates.remove(index)
    return widths


def _choice(problem: Problem, group_set: "GroupSet", block: int, most: int | None) -> Choice:
    groups, gone = group_set.groups, problem.gone
    total = len(groups)
    scores = np.where(gone[groups], 0.0, np.maximum(problem.scores[groups], 0.0))
    # What is gone goes first, what may not go last.
    rank = np.where(gone[groups], -1.0, np.where(problem.removable[groups], scores, np.inf))
    order = np.argsort(rank, kind="stable")
    lost = np.concatenate([[0.0], np.cumsum(scores[order])])[::-1].copy()
    least = total - int((problem.removable[groups] | gone[groups]).sum())
    widest = total - int(gone[groups].sum())
    floor = max(least, problem.limits.min_channels)
    if problem.limits.align > 1:
        step = problem.limits.align * (1 if most is None else -(-total // (problem.limits.align * most)))
        steps = sorted({*range(step, total, step), total})
    elif most is None:
        steps = list(range(1, total + 1))
    else:
        steps = lattice_of(group_set, block, most)
    widths = {width for width in steps if floor <= width <= widest}
    if least == 0 and group_set.bypassed:
        widths.add(0)
    # Where no step is left, the set stays as it is.
    return Choice(groups[order], lost, tuple(sorted(widths)) if widths - {0} or widest == 0 else (widest,))

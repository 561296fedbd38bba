"""The allocations that a search may try: a width for every set, from the floor to the dense one, within the budgets.

Every proposal is brought to the budgets, so that all policies compare allocations of one cost:

    project(a):  w_s = width nearest to c a_s d_s,  c the largest factor with which every budget holds

and what rounding leaves is given to the sets that were rounded down most. A walk through the sets one after another
clips each width so that the budgets stay reachable with all later sets at their floor (He et al. 2018, AMC, algorithm
1). No set is emptied: a share kept is above 0. (What a search starts from may do both; see `Trials`.)
"""

from collections.abc import Sequence

import numpy as np

from graphprune.allocation.choices import filled, removed_at
from graphprune.allocation.problem import Problem
from graphprune.allocation.steps import open_choices
from graphprune.passes.errors import BudgetError

__all__ = ["Space"]

_FLOORS = (0.2, 0.1, 0.05, 0.0)  # shares of its width that a set keeps; AMC has 0.2
_ROOM = 0.5  # of every budget must be left above the floor, or the next lower one is taken
_HALVINGS = 30


class Space:
    """The widths that each set may have, and which of them fit together.

    Attributes:
        problem: scores, costs and budgets.
        dense: (n_sets,) widths of the dense network.
        low: (n_sets,) the narrowest widths.
        floor: share of the dense width that `low` is, as nearly as the steps allow.
        open: (k,) the sets that have a choice: those that may get narrower at all.
    """

    def __init__(self, problem: Problem) -> None:
        """Take the highest floor that leaves room for a search.

        Raises:
            BudgetError: a budget cannot be reached without emptying a layer.
        """
        self.problem = problem
        self.dense = np.array([len(group_set.groups) for group_set in problem.graph.sets])
        self._choices = [choice.without_empty() for choice in open_choices(problem)]
        self._sorted = [np.array(choice.widths) for choice in self._choices]
        self.floor, self.low = self._floor()
        widest = np.array([widths[-1] for widths in self._sorted])
        self.open = np.flatnonzero(self.low < widest)

    def __len__(self) -> int:
        """Number of sets."""
        return len(self.dense)

    def _floor(self) -> tuple[float, np.ndarray]:
        for floor in _FLOORS:
            low = np.array(
                [_at_least(widths, floor * dense) for widths, dense in zip(self._sorted, self.dense, strict=True)]
            )
            cost = self.problem.count(~self.removed(low))
            room = 1.0 if floor == 0.0 else _ROOM
            if all(cost[unit] <= room * budget for unit, budget in self.problem.budgets.items()):
                return floor, low
        raise BudgetError(
            "the budget cannot be reached by a search, which leaves channels in every layer: ask for more, or take "
            "another policy"
        )

    def removed(self, widths: Sequence[int] | np.ndarray) -> np.ndarray:
        """Mask of the groups that go at these widths, (n_groups,): the least important of each set."""
        return removed_at(self.problem, self._choices, widths)

    def fits(self, widths: Sequence[int] | np.ndarray) -> bool:
        """Whether every budget holds."""
        return self.problem.fits(~self.removed(widths))

    def width(self, index: int, share: float) -> int:
        """The width of a set nearest to a share of its dense one, not below the floor."""
        return max(self._choices[index].nearest(share * float(self.dense[index])), int(self.low[index]))

    def widths(self, shares: np.ndarray) -> np.ndarray:
        """(n_sets,) `width` of every set."""
        return np.array([self.width(index, float(share)) for index, share in enumerate(shares)])

    def shares(self, widths: np.ndarray) -> np.ndarray:
        """(n_sets,) widths as shares of the dense ones."""
        return widths / self.dense

    def project(self, shares: np.ndarray) -> np.ndarray:
        """(n_sets,) the widths in these proportions that use up the budgets."""
        shares = np.maximum(shares, 1e-6)
        low, high = 0.0, float(1.0 / shares.min()) * (1 + 2.0**-_HALVINGS)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fits(self._scaled(shares, middle)) else (low, middle)
        meant = np.minimum(low * shares, 1.0)

        def rank(index: int, width: int) -> tuple[float]:
            """Those first that rounding left furthest below their share."""
            return (float(meant[index]) - width / float(self.dense[index]),)

        return filled(self.problem, self._choices, self._scaled(shares, low), rank)

    def _scaled(self, shares: np.ndarray, factor: float) -> np.ndarray:
        return self.widths(np.minimum(factor * shares, 1.0))

    def clipped(self, index: int, share: float, before: Sequence[int]) -> int:
        """The width of a set on a walk, narrowed until the budgets can still be reached.

        Args:
            index: the set.
            share: the share of its width that it is to keep.
            before: widths of the sets before it.
        """
        asked = self.width(index, share)
        allowed = self._sorted[index]
        allowed = allowed[(allowed >= self.low[index]) & (allowed <= asked)]
        low, high = 0, len(allowed) - 1  # the narrowest always fits: that is how the walk came here
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits([*before, int(allowed[middle]), *self.low[index + 1 :].tolist()]):
                low = middle
            else:
                high = middle - 1
        return int(allowed[low])


def _at_least(widths: np.ndarray, least: float) -> int:
    above = widths[widths >= least]
    return int(above[0] if len(above) else widths[-1])

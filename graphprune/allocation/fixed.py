"""Policy "fixed": widths that were chosen before; the importance decides which channels these are.

    w_s(part) = d_s + part (w_s - d_s)         d_s the dense width of set s, w_s the one that was chosen

As long as a budget leaves more than the chosen widths cost, all sets are the same part of the way there; a budget that
is tighter, as that of a latency which was measured and missed, goes on along the same line. No set is emptied that was
to keep something.
"""

import numpy as np

from graphprune.allocation.choices import removed_at
from graphprune.allocation.problem import Problem
from graphprune.allocation.steps import open_choices
from graphprune.passes.errors import BudgetError, UsageError

__all__ = ["fixed"]

_FURTHEST = 2.0
_HALVINGS = 30


def fixed(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,): no more than the budgets ask for.

    Raises:
        UsageError: no widths were chosen.
        BudgetError: a budget cannot be reached on the way through the chosen widths.
    """
    if problem.widths is None:
        raise UsageError("policy fixed keeps to widths that were chosen before, and there are none")
    choices = [
        choice.without_empty() if width else choice
        for choice, width in zip(open_choices(problem), problem.widths, strict=True)
    ]
    dense = np.array([len(group_set.groups) for group_set in problem.graph.sets])

    def removed(part: float) -> np.ndarray:
        widths = dense + part * (problem.widths - dense)
        return removed_at(problem, choices, [c.nearest(float(w)) for c, w in zip(choices, widths, strict=True)])

    low, high = 0.0, _FURTHEST
    if not problem.fits(~removed(high)):
        raise BudgetError("the budget cannot be reached with layers as wide in proportion as was chosen for them")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.fits(~removed(middle)) else (middle, high)
    return removed(high)

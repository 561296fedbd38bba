"""Policy "uniform": the same share of channels from every set, as small as the budgets allow; a baseline.

What rounding leaves of the budgets goes to the sets that were rounded down most, a step each.
"""

import numpy as np

from graphprune.allocation.choices import removed_at
from graphprune.allocation.problem import Problem
from graphprune.allocation.steps import open_choices
from graphprune.passes.errors import BudgetError

__all__ = ["uniform"]

_HALVINGS = 24


def uniform(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,). The least important of each set go; no set is emptied.

    Where latency matters, each set gets the width on the staircase that is nearest to its share.

    Raises:
        BudgetError: a budget cannot be reached.
    """
    choices = [choice.without_empty() for choice in open_choices(problem)]
    dense = np.array([len(group_set.groups) for group_set in problem.graph.sets])

    def widths(ratio: float) -> np.ndarray:
        return np.array([c.nearest(float(w)) for c, w in zip(choices, (1 - ratio) * dense, strict=True)])

    def fits(ratio: float) -> bool:
        return problem.fits(~removed_at(problem, choices, widths(ratio)))

    low, high = 0.0, 1.0
    if not fits(high):
        raise BudgetError("the budget cannot be reached with the same share of channels from every layer")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    found = widths(high)
    for index in np.argsort(found / dense, kind="stable"):
        wider = found.copy()
        wider[index] = choices[index].wider(int(found[index]))
        if problem.fits(~removed_at(problem, choices, wider)):
            found = wider
    return removed_at(problem, choices, found)

"""Policy "uniform": the same share of channels from every set, as small as the budgets allow; a baseline."""

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.allocation.ratio import select_ratio
from graphprune.passes.errors import BudgetError

__all__ = ["uniform"]

_HALVINGS = 24


def uniform(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,). The least important of each set go; no set is emptied.

    Raises:
        BudgetError: a budget cannot be reached.
    """

    def removed(ratio: float) -> np.ndarray:
        scores = np.where(problem.gone, -1.0, problem.scores)
        found = select_ratio(scores, ratio, problem.graph.sets, problem.removable, problem.limits)
        for group_set in problem.graph.sets:
            if found[group_set.groups].all():
                found[group_set.groups[np.argmax(scores[group_set.groups])]] = False
        return found | problem.gone

    low, high = 0.0, 1.0
    if not problem.fits(~removed(high)):
        raise BudgetError("the budget cannot be reached with the same share of channels from every layer")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.fits(~removed(middle)) else (middle, high)
    return removed(high)

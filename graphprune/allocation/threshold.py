"""Policy "threshold": groups go in the order of score per cost, wherever they are, until every budget is met."""

import numpy as np

from graphprune.allocation.budget import select
from graphprune.allocation.problem import Problem

__all__ = ["threshold"]


def threshold(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        BudgetError: a budget cannot be reached.
    """
    graph = problem.graph
    return select(
        problem.scores,
        graph.cost,
        problem.budgets,
        graph.sets,
        problem.removable,
        limits=problem.limits,
        forced=problem.forced,
    )

"""Policy "threshold": groups go in the order of score per cost, wherever they are, until every budget is met."""

import numpy as np

from graphprune.allocation.budget import select
from graphprune.allocation.problem import LATENCY, Problem
from graphprune.passes.errors import UsageError

__all__ = ["KNOWS_NO_LATENCY", "threshold"]

KNOWS_NO_LATENCY = "policy threshold counts channels one by one and knows nothing of latency: use knapsack"


def threshold(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        UsageError: a budget is in latency, of which a single channel has no price.
        BudgetError: a budget cannot be reached.
    """
    if LATENCY in problem.budgets or problem.is_on_steps:
        raise UsageError(KNOWS_NO_LATENCY)
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

"""Policy "random": shares drawn by lot; the baseline that a search must beat.

Source: Li & Talwalkar 2019, "Random search and reproducibility for neural architecture search".
"""

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.search.trials import Trials

__all__ = ["random_search"]


def random_search(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,): the best of uniformly drawn shares, each brought to the budgets.

    Raises:
        UsageError: nothing tries allocations out.
        BudgetError: a budget cannot be reached.
    """
    trials = Trials(problem, "random")
    rng = np.random.default_rng(trials.seed)
    while trials.left > 0:
        trials.look(trials.space.project(rng.uniform(max(trials.space.floor, 0.01), 1.0, len(trials.space))))
    return trials.result()

"""The policies by name: each turns a problem into the mask of groups to remove, and is one file.

Those that search run the model: `Problem.search` stands for them.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping

import numpy as np

from graphprune.allocation.fixed import fixed
from graphprune.allocation.knapsack import knapsack
from graphprune.allocation.problem import LATENCY, Problem
from graphprune.allocation.threshold import threshold
from graphprune.allocation.uniform import uniform
from graphprune.passes.errors import PlanError, UsageError
from graphprune.widths import set_widths

__all__ = ["POLICIES", "SEARCHES", "Policy", "allocate", "allocator", "require_policy"]

Policy = Callable[[Problem], np.ndarray]


def _searching(name: str) -> Policy:
    def policy(problem: Problem) -> np.ndarray:
        if problem.search is None:
            raise UsageError(f"policy {name} tries allocations out on images: give some")
        return problem.search.propose(name, problem)

    return policy


#: Policies that try allocations out; they need a `Problem.search`, which knows how.
SEARCHES: Mapping[str, Policy] = {name: _searching(name) for name in ("ddpg", "bee-colony", "random")}

POLICIES: Mapping[str, Policy] = {
    "knapsack": knapsack,
    "threshold": threshold,
    "uniform": uniform,
    "fixed": fixed,
    **SEARCHES,
}

_PACKAGES: Mapping[str, tuple[str, ...]] = {"ddpg": ("gymnasium", "stable_baselines3")}


def allocator(policy: str) -> Policy:
    """`allocate` with a policy, for budgets that are corrected: one that searches does so once.

    After that the widths that it has found are narrowed or widened in proportion.
    """
    widths: np.ndarray | None = None

    def allocate_again(problem: Problem) -> np.ndarray:
        nonlocal widths
        if widths is not None:
            return allocate(dataclasses.replace(problem, widths=widths), "fixed")
        removed = allocate(problem, policy)
        if policy in SEARCHES:
            widths = set_widths(problem.graph, ~removed)
        return removed

    return allocate_again


def require_policy(policy: str, *, latency: bool) -> None:
    """Refuse a policy before anything is measured for it.

    Args:
        policy: its name.
        latency: whether widths are to be chosen by latency.

    Raises:
        UsageError: there is no such policy, a single channel has no price in latency for it, or a package that it is
            made of is not installed.
    """
    if policy != "auto" and policy not in POLICIES:
        raise UsageError(f"policy must be auto or one of {', '.join(POLICIES)}, not {policy!r}")
    if policy == "threshold" and latency:
        raise UsageError("policy threshold counts channels one by one and knows nothing of latency: use knapsack")
    for package in _PACKAGES.get(policy, ()):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"policy {policy} needs {package}: pip install 'graphprune[search]'")


def allocate(problem: Problem, policy: str = "auto") -> np.ndarray:
    """Mask of the groups to remove, (n_groups,): what the policy says, without emptying sets that cannot go together.

    Args:
        problem: scores, costs and budgets.
        policy: a name in `POLICIES`; "auto" takes the knapsack where latency matters, else the threshold.

    Raises:
        UsageError: there is no such policy, or it cannot handle the budget.
        BudgetError: a budget cannot be reached.
    """
    latency = LATENCY in problem.budgets or problem.is_on_steps
    require_policy(policy, latency=latency)
    if policy == "auto":
        policy = "knapsack" if latency else "threshold"
    removable = problem.removable.copy()
    while True:
        chosen = POLICIES[policy](_with_removable(problem, removable))
        blocked = _stuck(problem, chosen)
        if blocked is None:
            return chosen
        groups = problem.graph.sets[blocked].groups
        alive = groups[~problem.gone[groups] & removable[groups]]
        removable[alive[np.argmax(problem.scores[alive])]] = False


def _with_removable(problem: Problem, removable: np.ndarray) -> Problem:
    return dataclasses.replace(problem, removable=removable)


def _stuck(problem: Problem, chosen: np.ndarray) -> int | None:
    """A set that must not be emptied together with the others, those that are gone already first."""
    graph, gone = problem.graph, problem.gone
    emptied = [s for s in graph.sets if chosen[s.groups].all()]
    together = np.zeros(len(chosen), dtype=bool)
    for group_set in sorted(emptied, key=lambda s: not gone[s.groups].all()):
        together[group_set.groups] = True
        try:
            graph.fates(together)
        except PlanError:
            return group_set.index
    return None

"""How many channels go and where: policies that turn scores and a budget into a set of groups to remove.

Which groups are worth least is not decided here but by their scores (`graphprune.importance`), so that a policy is one
file and knows nothing of weights.
"""

from graphprune.allocation.budget import CostFunction, check_reachable, select
from graphprune.allocation.policies import POLICIES, SEARCHES, Policy, allocate, allocator, require_policy
from graphprune.allocation.problem import LATENCY, Problem, count, count_dense
from graphprune.allocation.ratio import select_ratio
from graphprune.allocation.removable import Limits, removable_groups

__all__ = [
    "LATENCY",
    "POLICIES",
    "SEARCHES",
    "CostFunction",
    "Limits",
    "Policy",
    "Problem",
    "allocate",
    "allocator",
    "check_reachable",
    "count",
    "count_dense",
    "removable_groups",
    "require_policy",
    "select",
    "select_ratio",
]

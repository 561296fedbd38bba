"""What every allocation policy is given: groups with scores, what they cost, and what the rest may cost at most."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from graphprune.allocation.removable import Limits

if TYPE_CHECKING:
    from graphprune.latency import LatencyModel
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["LATENCY", "Problem", "Searcher", "count", "count_dense"]

#: The unit of a budget in latency: shares of the dense network's, as the latency model predicts them.
LATENCY = "latency"


class Searcher(Protocol):
    """What tries allocations out (`graphprune.search`)."""

    def propose(self, policy: str, problem: "Problem") -> np.ndarray:
        """(n_groups,) mask of the groups to remove: the best that the policy of that name finds.

        Raises:
            BudgetError: a budget cannot be reached.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """Which groups should go?

    Attributes:
        graph: the groups and what they cost.
        scores: (n_groups,) worth of each group, at least 0.
        budgets: unit ("macs", "params", "latency") -> what must not be exceeded.
        removable: (n_groups,) groups that may go.
        limits: what every set keeps.
        forced: (n_groups,) groups that are gone already and go in any case.
        latency: predicts latencies; None where nothing depends on them.
        is_on_steps: only widths of which no wider one is as fast.
        widths: (n_sets,) widths that were chosen before, for the policy that keeps to them.
        search: tries allocations out, for the policies that do.
    """

    graph: "ChannelGraph"
    scores: np.ndarray
    budgets: Mapping[str, float]
    removable: np.ndarray
    limits: Limits = field(default_factory=Limits)
    forced: np.ndarray | None = None
    latency: "LatencyModel | None" = None
    is_on_steps: bool = False
    widths: np.ndarray | None = None
    search: Searcher | None = None

    @property
    def gone(self) -> np.ndarray:
        """(n_groups,) `forced`, or nothing."""
        return np.zeros(len(self.scores), dtype=bool) if self.forced is None else self.forced

    def count(self, kept: np.ndarray) -> dict[str, float]:
        """Cost in the units of the budgets when the groups of `kept` stay."""
        found = count(self.graph, kept, self.latency)
        return {unit: found[unit] for unit in self.budgets}

    def fits(self, kept: np.ndarray) -> bool:
        """Whether every budget holds."""
        return all(cost <= self.budgets[unit] * (1 + 1e-9) for unit, cost in self.count(kept).items())


def count(graph: "ChannelGraph", kept: np.ndarray, latency: "LatencyModel | None" = None) -> dict[str, float]:
    """Cost of the slim model in every unit: multiply-accumulates, parameters, and predicted share of the latency."""
    found = {"macs": float(graph.cost.macs(kept)), "params": float(graph.cost.params(kept))}
    return found if latency is None else {**found, LATENCY: latency.share(graph, kept)}


def count_dense(graph: "ChannelGraph", latency: "LatencyModel | None" = None) -> dict[str, float]:
    """Cost of the dense model in every unit: what shares are shares of."""
    return {**graph.cost.dense, **({} if latency is None else {LATENCY: 1.0})}

"""The expected-sparse set of one network: which groups are going, and how they get to exactly zero.

After each step of the optimizer:

    s_g <- rho s_g + (1 - rho) score_g            running sensitivity
    E_t <- drawn anew every K steps: the groups worth least for what they cost, as many as the scheduled budget asks
    w_g <- max(0, 1 - threshold_g / ||w_g||) w_g  for g in E_t

The threshold is that of ISTA, eta lambda_s sigma_t sqrt|g|, or more where that alone would be late: from the step it
enters E_t a group's norm is held below a line that falls to zero within the fade time. So every group of the final
set is exactly zero at the end of the sparsify phase without a sudden cut. A group that leaves E_t before it is zero
is free again; one that is zero is dead: it stays in the set and may be removed at any time.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune.allocation import LATENCY, SEARCHES, Limits, Problem, allocate, count, count_dense, removable_groups
from graphprune.config import Budget, CompressConfig
from graphprune.freezing import frozen_groups
from graphprune.importance.criteria import Evidence, criterion
from graphprune.importance.group_index import GroupIndex, shrink_factors
from graphprune.latency.stopwatch import Stopwatch
from graphprune.passes.errors import PlanError
from graphprune.training.schedule import Schedule
from graphprune.widths import set_widths

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph


class SparseSet:
    """Sensitivities of all groups, and the set that is going to zero.

    Attributes:
        expected: (n_groups,) mask of the expected-sparse set.
        sensitivity: (n_groups,) running scores.
        unseen: how many observations were not finite, since the last that was, and were left out.
        removable: (n_groups,) mask of the groups that may go.
        dense: cost of the dense model, by unit.
        limits: what must be reached, as shares of that.
        stopwatch: measures latencies, where the budget is one.
        widths: (n_sets,) widths to come to, where they were chosen before the training.
        lost: (n_groups,) mask of groups that go in any case.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        config: CompressConfig,
        budget: Budget,
        seed: int,
        diversity: float = 0.0,
        first: Callable[[Any], Any] | None = None,
    ) -> None:
        """Start with nothing expected to go.

        Args:
            graph: the channel groups.
            config: settings of the run.
            budget: what must be reached.
            seed: of a criterion that draws lots, and of the factors of `diversity`.
            diversity: spread of the factors that scores are multiplied with, which stay the same all along.
            first: of several processes, gives what the first one holds; it alone measures latencies.
        """
        self.graph = graph
        self.config = config
        self.budget = budget
        self.limits = budget.shares()
        self.stopwatch: Stopwatch | None = None
        self._aim: np.ndarray | None = None
        self.lost = np.zeros(graph.n_groups, dtype=bool)
        self._first = first
        self.keeps = Limits.of(config.min_channels, config.align)
        self.criterion = criterion(config.sensitivity)
        self.removable = removable_groups(graph.sets, graph.exact, config.allow_inexact)
        self.removable &= ~frozen_groups(graph, config.freeze)
        self.dense = count_dense(graph)
        self.sensitivity = torch.zeros(graph.n_groups)
        self.unseen = 0
        self.expected = torch.zeros(graph.n_groups, dtype=torch.bool)
        self._seed = seed
        self._factors = np.exp(diversity * np.random.default_rng(seed).standard_normal(graph.n_groups))
        self._line = torch.full((graph.n_groups,), torch.inf)  # norm that a fading group may have
        self._left = torch.zeros(graph.n_groups, dtype=torch.long)  # steps until it must be zero

    @property
    def dead(self) -> Tensor:
        """(n_groups,) mask of the groups that have gone to exactly zero."""
        return self.expected & (self._line == 0)

    @property
    def is_fading(self) -> bool:
        """Are groups on their way to zero?"""
        return bool((self.expected & ~self.dead).any())

    def living(self) -> list[np.ndarray]:
        """The groups of each set that are not dead, whether those are removed already or not."""
        alive = ~self.dead.numpy()
        return [group_set.groups[alive[group_set.groups]] for group_set in self.graph.sets]

    def use(self, stopwatch: Stopwatch) -> None:
        """Choose widths by these latencies from now on; a budget in latency asks for it before the first draw."""
        self.stopwatch = stopwatch
        self.dense = count_dense(self.graph, stopwatch.model)
        if self.budget.has_latency:
            share = stopwatch.share_of(self.budget.speedup, self.budget.latency_ms)
            if share < 1:
                self.limits[LATENCY] = share

    @property
    def widths(self) -> np.ndarray | None:
        """(n_sets,) the widths to come to, where an allocation says."""
        return None if self._aim is None else set_widths(self.graph, ~self._aim)

    def aim(self, removed: np.ndarray) -> None:
        """Come to the widths of an allocation, (n_groups,) mask of what it removes, and no further than it costs."""
        self._aim = removed
        cost = count(self.graph, ~removed)
        for unit, share in self.budget.shares().items():
            self.limits[unit] = min(share, cost[unit] / self.dense[unit])

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """(n_groups,) mask of the groups to remove at the full budget, by one score a group."""
        self.sensitivity = torch.from_numpy(scores).float()
        return self.graph.with_unreached(self._select(self.limits, is_final=True))

    def settle_on(self, removed: np.ndarray) -> None:
        """These groups are zero, (n_groups,) mask, and no others are to go."""
        self.expected = torch.from_numpy(removed.copy())
        self._line = torch.where(self.expected, 0.0, torch.inf)
        self._left.zero_()

    def take_over(self, kept: np.ndarray, lost: np.ndarray) -> None:
        """Let groups be, (n_groups,) mask, or have them go in any case, likewise."""
        self.lost = lost & self.removable
        self.removable &= ~kept | self.lost

    def shares(self) -> dict[str, float]:
        """Cost without the expected-sparse set, as shares of the dense cost."""
        found = count(self.graph, ~self.expected.numpy(), None if self.stopwatch is None else self.stopwatch.model)
        return {unit: found[unit] / self.dense[unit] for unit in found}

    def observe(self, evidence: Evidence) -> None:
        """Take in what a criterion of gradients says after a backward pass."""
        if self.criterion.needs != "gradients":
            return
        score = self.criterion(evidence).to(self.sensitivity.dtype)
        if not bool(score.isfinite().all()):  # a step that a gradient scaler skips, or the end of the training
            self.unseen += 1
            return
        self.unseen = 0
        rho = self.config.sensitivity_decay
        self.sensitivity.mul_(rho).add_(score, alpha=1 - rho)

    def generator(self) -> torch.Generator:
        """Source of randomness of a criterion; the same at every draw, so that a set drawn by lot stays."""
        return torch.Generator().manual_seed(self._seed)

    def draw(self, step: int, schedule: Schedule, evidence: Evidence) -> None:
        """Choose anew which groups are expected to go, for the budget scheduled at `step`."""
        if self.criterion.needs != "gradients":
            self.sensitivity = self.criterion(evidence).float()
        chosen = torch.from_numpy(self._chosen(step, schedule))
        entered, left = chosen & ~self.expected, self.expected & ~chosen
        self._line[entered] = evidence.index.norms()[entered].to(self._line.dtype)
        self._left[entered] = schedule.steps_to_zero(step)
        self._line[left] = torch.inf
        self._left[left] = 0
        self.expected = chosen

    def _chosen(self, step: int, schedule: Schedule) -> np.ndarray:
        """The groups to remove: those of the first process, where latencies are measured."""
        asked = self.budget.has_latency or self.config.align == "auto" or self.config.policy in SEARCHES
        first = self._first if asked else None
        if first is not None and self.stopwatch is None and self.widths is None:
            return first(None)
        shares = {unit: schedule.share(step, share) for unit, share in self.limits.items()}
        chosen = self._select(shares, step == schedule.final_draw)
        return chosen if first is None else first(chosen)

    def _select(self, shares: Mapping[str, float], is_final: bool) -> np.ndarray:
        """The groups to remove for budgets as shares of the dense cost; in the end, until the latency is measured."""
        latency = shares.get(LATENCY)
        problem = Problem(
            self.graph,
            self.sensitivity.double().numpy() * self._factors,
            {unit: share * self.dense[unit] for unit, share in shares.items()},
            self.removable,
            self.keeps,
            forced=self.dead.numpy() | self.lost,
            latency=None if self.stopwatch is None else self.stopwatch.model,
            is_on_steps=self.config.align == "auto",
            widths=self.widths,
        )
        policy = self.config.policy if self.widths is None else "fixed"

        def within(predicted: float) -> np.ndarray:
            return allocate(dataclasses.replace(problem, budgets={**problem.budgets, LATENCY: predicted}), policy)

        if latency is None or self.stopwatch is None:
            return allocate(problem, policy)
        if not is_final:
            return within(latency * self.stopwatch.correction)
        return self.stopwatch.reach(latency, within).removed

    @torch.no_grad()
    def shrink(self, index: GroupIndex, strength: float, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The proximal step.

        Args:
            index: the groups in the parameters.
            strength: eta lambda_s sigma_t.
            optimizer: what it remembers of groups that become zero is cleared.
        """
        if not bool(self.expected.any()):
            return
        fading = self._left > 0
        self._line[fading] *= (self._left[fading] - 1) / self._left[fading]
        self._left[fading] -= 1
        norms = index.norms()
        needed = (norms - self._line).clamp_min(0)
        ista = (strength * index.sizes.sqrt()).to(norms.dtype)
        thresholds = torch.where(self.expected, ista.maximum(needed), 0.0)
        factors = shrink_factors(norms, thresholds)
        gone = self.expected & ((factors == 0) | (norms == 0))
        if bool((gone & (self._line != 0)).any()):
            gone = self._with_unreached(gone)
            factors = torch.where(gone, torch.zeros_like(factors), factors)
        index.scale_(factors)
        self._line[gone] = 0.0
        self._left[gone] = 0
        if optimizer is not None and bool((gone & (norms > 0)).any()):
            index.clear_state_(optimizer, gone)

    def _with_unreached(self, gone: Tensor) -> Tensor:
        """With the groups that are computed for nothing once whole branches went: they go as well."""
        try:
            every = torch.from_numpy(self.graph.with_unreached(gone.numpy()))
        except PlanError:  # so far only some of the sets are empty that can go together
            return gone
        self.expected = self.expected | every
        return every

    def silence_(self, index: GroupIndex) -> None:
        """Zero the gradients of dead groups, which an activation that is not zero at zero lets through."""
        dead = self.dead
        if bool(dead.any()):
            index.scale_((~dead).to(index.sizes.dtype), [p.grad for p in index.parameters])

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        names = ("sensitivity", "expected", "_line", "_left")
        aim = None if self._aim is None else torch.from_numpy(self._aim)
        return {**{name.strip("_"): getattr(self, name) for name in names}, "aim": aim}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.sensitivity, self.expected = state["sensitivity"], state["expected"]
        self._line, self._left = state["line"], state["left"]
        # A search that is gone through again, with other threads say, may come to something else than this run began
        # with. Processes that were told no widths go on being told what was chosen.
        if self._aim is not None and state.get("aim") is not None:
            self.aim(state["aim"].numpy())

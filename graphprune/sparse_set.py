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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune.allocation import Limits, removable_groups, select
from graphprune.allocation.budget import count
from graphprune.config import CompressConfig
from graphprune.freezing import frozen_groups
from graphprune.importance import Evidence, criterion
from graphprune.passes.errors import PlanError
from graphprune.schedule import Schedule
from graphprune.sparsity import GroupIndex, shrink_factors

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph


class SparseSet:
    """Sensitivities of all groups, and the set that is going to zero.

    Attributes:
        expected: (n_groups,) mask of the expected-sparse set.
        sensitivity: (n_groups,) running scores.
        removable: (n_groups,) mask of the groups that may go.
        dense: cost of the dense model, by unit.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        config: CompressConfig,
        limits: Mapping[str, float],
        seed: int,
        diversity: float = 0.0,
    ) -> None:
        """Start with nothing expected to go.

        Args:
            graph: the channel groups.
            config: settings of the run.
            limits: budgets as shares of the dense cost, by unit.
            seed: of a criterion that draws lots, and of the factors of `diversity`.
            diversity: spread of the factors that scores are multiplied with, which stay the same all along.
        """
        self.graph = graph
        self.config = config
        self.limits = dict(limits)
        self.criterion = criterion(config.sensitivity)
        self.removable = removable_groups(graph.sets, graph.exact, config.allow_inexact)
        self.removable &= ~frozen_groups(graph, config.freeze)
        self.dense = count(graph.cost, graph.all_kept())
        self.sensitivity = torch.zeros(graph.n_groups)
        self.expected = torch.zeros(graph.n_groups, dtype=torch.bool)
        self._seed = seed
        self._factors = np.exp(diversity * np.random.default_rng(seed).standard_normal(graph.n_groups))
        self._line = torch.full((graph.n_groups,), torch.inf)  # norm that a fading group may have
        self._left = torch.zeros(graph.n_groups, dtype=torch.long)  # steps until it must be zero

    @property
    def dead(self) -> Tensor:
        """(n_groups,) mask of the groups that have gone to exactly zero."""
        return self.expected & (self._line == 0)

    def shares(self) -> dict[str, float]:
        """Cost without the expected-sparse set, as shares of the dense cost."""
        found = count(self.graph.cost, ~self.expected.numpy())
        return {unit: found[unit] / self.dense[unit] for unit in found}

    def observe(self, evidence: Evidence) -> None:
        """Take in what a criterion of gradients says after a backward pass."""
        if self.criterion.needs != "gradients":
            return
        score = self.criterion(evidence).to(self.sensitivity.dtype)
        rho = self.config.sensitivity_decay
        self.sensitivity.mul_(rho).add_(score, alpha=1 - rho)

    def generator(self) -> torch.Generator:
        """Source of randomness of a criterion; the same at every draw, so that a set drawn by lot stays."""
        return torch.Generator().manual_seed(self._seed)

    def draw(self, step: int, schedule: Schedule, evidence: Evidence) -> None:
        """Choose anew which groups are expected to go, for the budget scheduled at `step`."""
        if self.criterion.needs != "gradients":
            self.sensitivity = self.criterion(evidence).float()
        budgets = {unit: schedule.share(step, share) * self.dense[unit] for unit, share in self.limits.items()}
        chosen = torch.from_numpy(self._select(budgets))
        entered, left = chosen & ~self.expected, self.expected & ~chosen
        self._line[entered] = evidence.index.norms()[entered].to(self._line.dtype)
        self._left[entered] = schedule.steps_to_zero(step)
        self._line[left] = torch.inf
        self._left[left] = 0
        self.expected = chosen

    def _select(self, budgets: Mapping[str, float]) -> np.ndarray:
        """The groups to remove; sets are emptied only where all of them can be done without at once."""
        removable = self.removable.copy()
        dead = self.dead.numpy()
        scores = self.sensitivity.double().numpy() * self._factors
        limits = Limits(self.config.min_channels, self.config.align)
        while True:
            chosen = select(scores, self.graph.cost, budgets, self.graph.sets, removable, limits=limits, forced=dead)
            blocked = self._stuck(chosen, dead)
            if blocked is None:
                return chosen
            groups = self.graph.sets[blocked].groups
            alive = groups[~dead[groups]]
            removable[alive[np.argmax(scores[alive])]] = False

    def _stuck(self, chosen: np.ndarray, dead: np.ndarray) -> int | None:
        """A set that must not be emptied together with the others, those that are gone already first."""
        emptied = [s for s in self.graph.sets if chosen[s.groups].all()]
        together = np.zeros(len(chosen), dtype=bool)
        for group_set in sorted(emptied, key=lambda s: not dead[s.groups].all()):
            together[group_set.groups] = True
            try:
                self.graph.fates(together)
            except PlanError:
                return group_set.index
        return None

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
        return {name.strip("_"): getattr(self, name) for name in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.sensitivity, self.expected = state["sensitivity"], state["expected"]
        self._line, self._left = state["line"], state["left"]

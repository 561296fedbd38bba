"""One student: a copy of the teacher that is being compressed, and everything a run remembers about it.

Each step, after the backward pass:

    s_g <- rho s_g + (1 - rho) score_g            running sensitivity
    w   <- optimizer step
    E_t <- drawn anew every K steps: the groups worth least for what they cost, as many as the scheduled budget asks
    w_g <- max(0, 1 - threshold_g / ||w_g||) w_g  for g in E_t

The threshold is that of ISTA, eta lambda_s sigma_t sqrt|g|, or more where that alone would be late: from the step it
enters E_t a group's norm is held below a line that falls to zero within the fade time. So every group of the final
set is exactly zero at the end of the sparsify phase without a sudden cut. A group that leaves E_t before it is zero
is free again; one that is zero gets no gradient any more, stays in the set and may be removed at any time.
"""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.allocation import Limits, removable_groups, select
from graphprune.allocation.budget import count
from graphprune.config import CompressConfig
from graphprune.distill import FeatureLoss
from graphprune.importance import Evidence, criterion, needs_gradient
from graphprune.schedule import Schedule
from graphprune.sparsity import GroupIndex, shrink_factors

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.capture import CapturedModule


class Student:
    """A copy of the teacher, its optimizer, sensitivities and expected-sparse set.

    Attributes:
        module: the network itself.
        tapped: the same network, returning (output, features at the taps).
        expected: (n_groups,) mask of the expected-sparse set.
    """

    def __init__(
        self, teacher: "CapturedModule", graph: "ChannelGraph", config: CompressConfig, number: int, taps: list[str]
    ) -> None:
        self.graph = graph
        self.config = config
        self.number = number
        self.module = copy.deepcopy(teacher)
        _drop_dropout(self.module)
        self.tapped = self.module.with_taps(taps)
        self.tapped.train()
        self.optimizer = _optimizer(self.module, config)
        self.index = GroupIndex(dict(self.module.named_parameters(remove_duplicate=False)), graph.axes, graph.n_groups)
        self.features = FeatureLoss([graph.value_groups.get(name) for name in taps], graph.n_groups)
        self.removable = removable_groups(graph.sets, graph.exact, config.allow_inexact)
        self.dense = count(graph.cost, np.ones(graph.n_groups, dtype=bool))
        self.sensitivity = torch.zeros(graph.n_groups)
        self.expected = torch.zeros(graph.n_groups, dtype=torch.bool)
        self._line = torch.full((graph.n_groups,), torch.inf)  # norm that a fading group may have
        self._left = torch.zeros(graph.n_groups, dtype=torch.long)  # steps until it must be zero
        self.features.keep(~self.expected)

    @property
    def dead(self) -> Tensor:
        """(n_groups,) mask of the groups that have gone to exactly zero."""
        return self.expected & (self._line == 0)

    @property
    def removed(self) -> np.ndarray:
        """(n_groups,) mask of the groups that are zero, as NumPy array."""
        return self.dead.numpy()

    def shares(self) -> dict[str, float]:
        """Cost without the expected-sparse set, as shares of the dense cost."""
        found = count(self.graph.cost, ~self.expected.numpy())
        return {unit: found[unit] / self.dense[unit] for unit in found}

    def step(self, step: int, schedule: Schedule) -> None:
        """Everything between the backward pass and the next forward pass."""
        rate = self.config.lr * schedule.lr_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.grad_clip)
        # After clipping, so that one odd batch does not outweigh the others in the running mean.
        if needs_gradient(self.config.criterion) and step <= schedule.final_draw:
            rho = self.config.sensitivity_decay
            self.sensitivity.mul_(rho).add_(self._score(), alpha=1 - rho)
        self.optimizer.step()
        if schedule.is_draw(step):
            self._draw(step, schedule)
        if self.expected.any():
            self._shrink(rate * self.config.lambda_sparsity * schedule.ramp(step))

    def _score(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.seed + self.number)
        return criterion(self.config.criterion)(Evidence(self.index, generator))

    def _draw(self, step: int, schedule: Schedule) -> None:
        if not needs_gradient(self.config.criterion):
            self.sensitivity = self._score()
        limits = self.config.budget(self.number).limits()
        selected = select(
            self.sensitivity.double().numpy(),
            self.graph.cost,
            {unit: schedule.share(step, share) * self.dense[unit] for unit, share in limits.items()},
            self.graph.sets,
            self.removable,
            limits=Limits(self.config.min_channels, self.config.align),
            forced=self.removed,
        )
        chosen = torch.from_numpy(selected)
        entered, left = chosen & ~self.expected, self.expected & ~chosen
        self._line[entered] = self.index.norms()[entered]
        self._left[entered] = schedule.steps_to_zero(step)
        self._line[left] = torch.inf
        self._left[left] = 0
        self.expected = chosen
        self.features.keep(~chosen)

    @torch.no_grad()
    def _shrink(self, strength: float) -> None:
        """The proximal step; `strength` is eta lambda_s sigma_t."""
        fading = self._left > 0
        self._line[fading] *= (self._left[fading] - 1) / self._left[fading]
        self._left[fading] -= 1
        norms = self.index.norms()
        needed = (norms - self._line).clamp_min(0)
        thresholds = torch.where(self.expected, (strength * self.index.sizes.sqrt()).maximum(needed), 0.0)
        factors = shrink_factors(norms, thresholds)
        self.index.scale_(factors)
        gone = self.expected & ((factors == 0) | (norms == 0))
        self._line[gone] = 0.0
        self._left[gone] = 0
        if bool((gone & (norms > 0)).any()):
            self.index.clear_state_(self.optimizer, gone)

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs to go on with this student."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sensitivity": self.sensitivity,
            "expected": self.expected,
            "line": self._line,
            "left": self._left,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sensitivity = state["sensitivity"]
        self.expected = state["expected"]
        self._line = state["line"]
        self._left = state["left"]
        self.features.keep(~self.expected)


def _drop_dropout(module: "CapturedModule") -> None:
    """Bypass dropout: the teacher says on every image what is right, so there is no label noise to guard against."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and "dropout" in str(node.target):
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()


def _optimizer(module: nn.Module, config: CompressConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; biases and norm weights are not decayed, the sparsity term looks after them."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    other = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)

"""Structured sparsity for a training loop of your own, with whatever loss and optimizer it has.

    pruner = gp.SparseTrainer(model, example_inputs, macs=0.5, steps=10_000, optimizer=optimizer)
    for images, labels in loader:
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
        pruner.step()
    slim = pruner.finish()

The sensitivity of each channel group is read from the gradients that the step used; which groups are expected to go,
and how they get to exactly zero, is `graphprune.training.sparse_set`, the same as in `compress`.
"""

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from graphprune.allocation import SEARCHES, check_reachable
from graphprune.config import BUDGETS, RECONSTRUCTED, CompressConfig
from graphprune.importance.criteria import Evidence, scale_parameters
from graphprune.importance.group_index import GroupIndex
from graphprune.passes.errors import TrainingError, UnsupportedModelError, UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.slim import slim
from graphprune.training.schedule import Phase, Schedule
from graphprune.training.sparse_set import SparseSet

if TYPE_CHECKING:
    from graphprune.passes.channels.plan import PruningPlan

__all__ = ["SparseTrainer"]

_MOST_SKIPPED = 3  # steps
_NO_GRADIENT = "no parameter has a gradient, or all are zero: call step() before optimizer.zero_grad()"

logger = logging.getLogger("graphprune")


class SparseTrainer:
    """Makes a module sparse while its owner trains it; the module keeps its shapes until `finish`.

    Attributes:
        model: the module that is trained.
        graph: its channel groups.
        schedule: phases of the `steps`.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        *,
        macs: float | None = None,
        params: float | None = None,
        steps: int = 2000,
        optimizer: torch.optim.Optimizer | None = None,
        sensitivity: str | None = None,
        freeze: str | Sequence[str] | None = None,
        align: int | None = None,
        config: CompressConfig | None = None,
    ) -> None:
        """Analyze the module; nothing in it changes before the first steps.

        Args:
            model: what is trained, on the device where it will be.
            example_inputs: the arguments of one call.
            macs: share of the multiply-accumulates that may be left.
            params: share of the parameters that may be left.
            steps: length of the schedule. Groups leave in its first third, by default; more steps may follow.
            optimizer: the one in use: its learning rate scales the sparsity term, and what it remembers of groups
                that became zero is cleared.
            sensitivity: name of a criterion that looks at gradients or weights.
            freeze: patterns (`layer1.*`) of layers that keep all their output channels. Channels of which no weight is
                trained (`requires_grad=False`) stay as well.
            align: kept channels of every set are a multiple of this.
            config: all settings, warmup, sparsify, fade, lambda_sparsity, course and so on. Arguments above that are
                given go before it.

        Raises:
            UsageError: no budget, or a setting out of range.
            BudgetError: the budget cannot be reached.
            CaptureError: the model cannot be captured.
        """
        asked = {"macs": macs, "params": params, "sensitivity": sensitivity, "align": align, "freeze": freeze}
        given = {name: value for name, value in asked.items() if value is not None}
        settings = {**(config or CompressConfig()).to_dict(), **given, "n_students": 1}
        for name in BUDGETS:
            if isinstance(settings[name], list | tuple):
                raise UsageError(f"{name} gives several budgets, and one model is trained here: give one")
        self.config = CompressConfig.from_dict(settings)
        if self.config.needs_latency:
            raise UsageError("budgets in latency and align='auto' are for compress(); give macs= or params= here")
        if self.config.policy in SEARCHES or self.config.sigma:
            raise UsageError(f"policies that search ({', '.join(SEARCHES)}) and sigma are for compress()")
        if self.config.course == RECONSTRUCTED:
            raise UsageError(f"the course {RECONSTRUCTED!r} is for compress(): call reconstruct() before your own loop")
        limits = self.config.budget(0).limits()
        if not limits:
            raise UsageError("no budget given: say how small the model must become with macs= or params=")
        self.model = model
        self.schedule = Schedule.of_steps(self.config, steps)
        self.graph = analyze(capture(model, example_inputs))
        self._examples = example_inputs
        self._optimizer = optimizer
        self._scales = scale_parameters(self.graph.front_end.ops)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        missing = sorted({name for name, _ in self.graph.axes} & self.graph.parameters - parameters.keys())
        if missing:
            raise UnsupportedModelError(
                f"{missing[0]} of the captured graph is no parameter of the model: a weight that is computed from "
                "others (parametrization) cannot be made sparse in your own loop"
            )
        self._index = GroupIndex(parameters, self.graph.axes, self.graph.n_groups)
        self.set = SparseSet(self.graph, self.config, self.config.budget(0), self.config.seed)
        if self.set.criterion.needs == "activations":
            raise UsageError(
                f"sensitivity {self.config.sensitivity!r} looks at activations, which your own loop keeps to itself"
            )
        self.set.removable &= self._trained()
        goals = {unit: share * self.set.dense[unit] for unit, share in limits.items()}
        check_reachable(self.graph.cost, goals, self.graph.sets, self.set.removable, self.set.keeps)
        self._done = 0
        self._drawn_at = -1

    def _trained(self) -> np.ndarray:
        """(n_groups,) those with a weight that is trained: of others nothing is known, and they are not to change."""
        flags = [torch.full_like(p, float(p.requires_grad), requires_grad=False) for p in self._index.parameters]
        found: np.ndarray = (self._index.sums(flags) > 0).cpu().numpy()
        left = self.set.removable & ~found
        if left.any():
            names = dict.fromkeys(self.graph.sets[at].name for at in self.graph.set_of[left])
            logger.info("left alone, as their weights have requires_grad=False: %s", ", ".join(names))
        return found

    @property
    def phase(self) -> Phase:
        """Where the schedule stands: "warm-up", "sparsify" or "settle"."""
        return self.schedule.phase(min(self._done, self.schedule.total - 1))

    @property
    def cost(self) -> dict[str, float]:
        """Cost without the groups that are expected to go, as shares of the dense cost."""
        return self.set.shares()

    @torch.no_grad()
    def step(self) -> None:
        """Do what belongs to one step; call it after `optimizer.step()`, while the gradients are still there.

        Raises:
            TrainingError: a weight is not finite any more, or there are no gradients to look at.
        """
        step = self._done
        if step <= self.schedule.final_draw and self.set.criterion.needs == "gradients":
            if all(p.grad is None for p in self._index.parameters):
                raise TrainingError(_NO_GRADIENT)
            self.set.observe(self._evidence())
        if self.schedule.is_draw(step):
            if self.set.criterion.needs == "gradients" and not self.set.unseen and not self.set.sensitivity.any():
                raise TrainingError(_NO_GRADIENT)
            self.set.draw(step, self.schedule, self._evidence())
        rate = max((group["lr"] for group in self._optimizer.param_groups), default=0.0) if self._optimizer else 0.0
        self.set.shrink(self._index, rate * self.config.lambda_sparsity * self.schedule.ramp(step), self._optimizer)
        self._done += 1
        if self.schedule.is_draw(step):
            # A gradient scaler tries its factor, and skips steps; a draw must have something to go by.
            unseen, since, self._drawn_at = self.set.unseen, step - self._drawn_at, step
            if unseen and (unseen > step or unseen >= max(since, _MOST_SKIPPED)):
                raise TrainingError(f"the gradients are not finite at step {step + 1}: lower the learning rate")

    def _evidence(self) -> Evidence:
        return Evidence(self._index, self.set.generator(), sets=self.set.living(), scales=self._scales)

    @property
    def plan(self) -> "PruningPlan":
        """The channels that are at zero now."""
        return self.graph.plan(self.set.dead.numpy(), **self.config.budget(0).limits())

    def finish(self) -> nn.Module:
        """Return the slim model, verified to compute what `model` does; `model` itself is not touched.

        Every part is in the mode, training or evaluation, that it has in `model`.

        Raises:
            TrainingError: the schedule is not at its settle phase yet, or channels that are to go have come back: the
                weights were changed after the last `step`.
            VerificationError: the slim model computes something else.
        """
        if self._done < self.schedule.settle_from:
            left = self.schedule.settle_from - self._done
            raise TrainingError(f"{left} more steps are needed until the channels to remove are at zero; see steps=")
        back = np.flatnonzero((self._index.norms() > 0).cpu().numpy() & self.set.dead.numpy())
        if len(back):
            name = self.graph.sets[self.graph.set_of[back[0]]].name
            raise TrainingError(
                f"channels of {name} that are to go are not at zero: weights changed after the last step(), by the "
                "optimizer or by loading others; call step() after every change, and keep both states together"
            )
        result = slim(self.model, self.plan, self._examples)
        shares = ", ".join(f"{unit} {share:.4f} of the dense" for unit, share in self.cost.items())
        logger.info("done: %s", shares)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the loop needs beside model and optimizer; a copy, which further steps leave alone."""
        return {"done": self._done, "set": copy.deepcopy(self.set.state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._done = int(state["done"])
        self.set.load_state(copy.deepcopy(state["set"]))

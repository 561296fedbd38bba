"""One student: a copy of the teacher that is being compressed, and everything a run remembers about it.

Which groups go is the matter of `graphprune.training.sparse_set`. Groups that are dead are removed from the student
while it learns (`graphprune.training.removal`): the steps get cheaper, and nothing else changes.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.config import CompressConfig
from graphprune.data.batches import Batch, tensors_of
from graphprune.importance.activations import ActivationStatistics
from graphprune.importance.criteria import Evidence, scale_parameters
from graphprune.importance.group_index import GroupIndex
from graphprune.passes.fx.captured import set_training
from graphprune.passes.fx.dropout import bypass_dropout
from graphprune.passes.fx.fuse import activate_in_place, fold_norms, hold_still
from graphprune.runtime.precision import Precision
from graphprune.training.batchnorm import reestimate_batch_norm
from graphprune.training.distill import FeatureLoss
from graphprune.training.linear_sparsity import LinearSparsity, clear_
from graphprune.training.processes import Processes, synchronize_batch_norm
from graphprune.training.removal import Removal, carry_over, restore
from graphprune.training.schedule import Schedule
from graphprune.training.sparse_set import SparseSet
from graphprune.training.start import Start

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

_WORTH_A_CUT = 0.03  # share of a step's multiply-accumulates; a cut takes about as long as a step


class Student:
    """A copy of the teacher, its optimizer, sensitivities and expected-sparse set.

    Attributes:
        number: which of the students it is.
        module: the network itself, without the groups that were removed.
        tapped: the same network, returning (output, features at the taps that it still has).
        set: the expected-sparse set.
        present: (n_groups,) mask of the groups that `module` still has.
        is_bn_frozen: whether BatchNorm keeps its statistics.
    """

    def __init__(
        self,
        teacher: "CapturedModule",
        graph: "ChannelGraph",
        config: CompressConfig,
        number: int,
        taps: list[str],
        learned: Sequence[str],
        look: Callable[[], Iterable[Batch]] = tuple,
        processes: Processes | None = None,
        sparsity: LinearSparsity | None = None,
    ) -> None:
        """Begin as the teacher.

        Args:
            teacher: the captured model.
            graph: its channel groups.
            config: settings of the run.
            number: which of the students this is.
            taps: nodes at which features are compared.
            learned: nodes whose results are learned, and are the outputs here.
            look: gives images, for a sensitivity that looks at activations.
            processes: this process among those of the run.
            sparsity: weights of linear layers that are zero from the start and stay so.

        Raises:
            UsageError: the sensitivity looks at what the network does not have.
        """
        self.graph = graph
        self.config = config
        self.number = number
        has_twin = config.budget(number) in [config.budget(earlier) for earlier in range(number)]
        diversity = config.diversity if has_twin else 0.0
        self._is_alone = processes is None or processes.world == 1
        first = None if processes is None or self._is_alone else processes.first
        self._sparsity = sparsity
        counted = graph if sparsity is None else sparsity.thinned(without_dead=True)
        self.set = SparseSet(counted, config, config.budget(number), config.seed + number, diversity, first)
        if sparsity is not None:
            self.set.take_over(sparsity.own, sparsity.dead)
        self.precision = Precision()
        self._taps, self._learned = taps, learned
        self._look = look
        self._scales = scale_parameters(graph.front_end.ops)
        self.features = FeatureLoss([graph.value_groups.get(name) for name in taps], graph.n_groups)
        self.present = graph.all_kept()
        self.is_bn_frozen = False
        self._sizes: Tensor | None = None
        self._removal = Removal(graph, [*taps, *learned])
        self._adopt(copy.deepcopy(teacher))
        clear_(self._thinned)
        self._sizes = self.index.sizes
        if self.set.criterion.needs == "weights":
            self.set.criterion(self._evidence())  # one that these layers do not have is refused now

    def _adopt(self, module: "CapturedModule") -> None:
        """Make `module`, which has the groups in `present`, the network."""
        self.module = module
        # The teacher says on every image what is right, so there is no label noise to guard against.
        bypass_dropout(module)
        self.precision.convert_(module)
        self._tapped_at = self._removal.taps_left(self.present)[: len(self._taps)]
        self._tap()
        self.optimizer = _optimizer(module, self.config)
        self._thinned = [] if self._sparsity is None else self._sparsity.held(module, self.present)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        axes = {(name, dim): ids[self.present[ids] | (ids < 0)] for (name, dim), ids in self.graph.axes.items()}
        self.index = GroupIndex(parameters, axes, self.graph.n_groups, self._sizes)
        self.features.reduce_to(torch.from_numpy(self.present))
        self.features.keep(~self.set.expected)

    def _tap(self) -> None:
        """Derive from the network what steps run."""
        self.tapped = self.module.with_taps([name for name in self._tapped_at if name is not None], self._learned)
        self.learn_on()
        if self.is_bn_frozen:
            fold_norms(self.tapped.inner, live=True)
            hold_still(self.tapped.inner)
        activate_in_place(self.tapped.inner)
        if not self._is_alone:
            synchronize_batch_norm(self.tapped.inner)

    def use(self, precision: Precision) -> None:
        """Compute from now on like this; before the first step."""
        self.precision = precision
        self._adopt(self.module)  # what refers to its parameters has to follow them

    def begin(self, start: Start) -> None:
        """Be what `start` is, instead of a copy of the teacher; before the first step."""
        self.module.load_state_dict(dict(start.state_dict))
        self.set.settle_on(start.removed)
        self.features.keep(~self.set.expected)
        if self.config.shrink:
            self._remove_dead(True)

    def learn_on(self) -> None:
        """Compute as in training, after measurements."""
        self.tapped.train()
        if self.is_bn_frozen:  # and nothing else: cuDNN has no gradient of a recurrent layer in inference
            set_training(self.tapped.inner, False, norms_only=True)

    def freeze_bn(self, batches: Iterable[Batch]) -> None:
        """From now on BatchNorm computes as in inference, with the statistics of these batches.

        What is learned is then what is delivered: without the noise of a batch's statistics, and without statistics
        that are estimated anew when nothing learns any more.
        """
        reestimate_batch_norm(self.module, self.tapped, batches)
        self.is_bn_frozen = True
        self._tap()

    def __call__(self, batch: Batch) -> tuple[Any, list[Tensor | None]]:
        """Outputs, and features at the taps (None where nothing of a tap is left)."""
        output, features = self.tapped(*tensors_of(batch))
        found = iter(features)
        return output, [None if name is None else next(found) for name in self._tapped_at]

    def shares(self) -> dict[str, float]:
        """Cost without the expected-sparse set, as shares of the dense cost."""
        return self.set.shares()

    def learn(self, step: int, schedule: Schedule) -> None:
        """What follows the backward pass: the gradient is looked at, and used."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step, schedule)
        if not self._is_cut_clean():
            self.set.silence_(self.index)
        clear_([(weight.grad, mask) for weight, mask in self._thinned if weight.grad is not None])
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.grad_clip)
        # After clipping, so that one odd batch does not outweigh the others in the running mean.
        if step <= schedule.final_draw:
            self.set.observe(self._evidence())
        self.optimizer.step()

    def advance(self, step: int, schedule: Schedule) -> None:
        """What the course of the run asks for at a step, whether this student has learned in it or not."""
        if schedule.is_draw(step):
            self.set.draw(step, schedule, self._evidence())
            self.features.keep(~self.set.expected)
        if self.set.is_fading or not self._is_cut_clean():  # else there is nothing left to make smaller
            strength = self._rate(step, schedule) * self.config.lambda_sparsity * schedule.ramp(step)
            self.set.shrink(self.index, strength, self.optimizer)
        clear_(self._thinned)
        if self.config.shrink and (schedule.is_draw(step) or step + 1 == schedule.settle_from):
            self._remove_dead(step + 1 == schedule.settle_from)

    def _rate(self, step: int, schedule: Schedule) -> float:
        return self.config.peak_lr * schedule.lr_factor(step)

    def _evidence(self) -> Evidence:
        return Evidence(
            self.index,
            self.set.generator(),
            sets=self.set.living(),
            scales=self._scales,
            activations=ActivationStatistics(self.module, self.graph, self._look, self.present),
        )

    def _is_cut_clean(self) -> bool:
        """Is every dead group removed?"""
        return not bool((self.set.dead & torch.from_numpy(self.present)).any())

    def _remove_dead(self, whatever_it_saves: bool) -> None:
        present = self._removal.present(self.set.dead.numpy())
        if np.array_equal(present, self.present):
            return
        now, then = (self.graph.cost.macs(mask) for mask in (self.present, present))
        if whatever_it_saves or then < (1 - _WORTH_A_CUT) * now:
            self._cut(present)

    def _cut(self, present: np.ndarray) -> None:
        """Remove groups from network, optimizer and taps."""
        before, had = (self.module, self.optimizer), self.present
        self.present = present
        self._adopt(self._removal.cut(present))
        carry_over(self.graph, *before, had, self.module, self.optimizer, present)

    def removed(self) -> np.ndarray:
        """(n_groups,) mask of the groups that are zero."""
        return self.set.dead.numpy().copy()

    def dense_state(self) -> dict[str, Tensor]:
        """Parameters and buffers in the shapes of the dense model, removed groups exactly zero."""
        return restore(self.graph, self.module, self.present)

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs to go on with this student."""
        return {
            "present": torch.from_numpy(self.present),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "set": self.set.state(),
            "is_bn_frozen": self.is_bn_frozen,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.set.load_state(state["set"])
        self.is_bn_frozen = state["is_bn_frozen"]
        present = state["present"].numpy()
        if np.array_equal(present, self.present):
            self._tap()
        else:
            self.present = present
            self._adopt(self._removal.cut(present))
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.features.keep(~self.set.expected)


def _optimizer(module: nn.Module, config: CompressConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; biases and norm weights are not decayed, the sparsity term looks after them."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    other = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=config.momentum > 0)

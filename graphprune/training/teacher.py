"""The frozen teacher: the model that students begin as and learn from."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.data.batches import Batch, tensors_of
from graphprune.importance.output_loss import flatten_outputs
from graphprune.passes.fx.fuse import activate_in_place, fold_norms
from graphprune.runtime.precision import Precision

if TYPE_CHECKING:
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Teacher"]


class Teacher:
    """A model in inference mode, asked for outputs and features.

    Attributes:
        module: a copy of the model, in the memory layout and on the device of the run.
        tapped: the same network with norms folded into layers, returning (output, features).

    Args:
        model: it is not modified.
        taps: names of the nodes whose features are compared.
        learned: names of those whose results are learned, and are the outputs here.
    """

    def __init__(self, model: "CapturedModule", taps: Sequence[str], learned: Sequence[str]) -> None:
        self.module = copy.deepcopy(model).eval()
        self._taps, self._learned = taps, learned
        self.use(Precision())

    def use(self, precision: Precision) -> None:
        """Compute from now on like this."""
        self._precision = precision
        precision.convert_(self.module)
        self.tapped = self.module.with_taps(self._taps, self._learned)
        self.tapped.eval()
        fold_norms(self.tapped.inner)
        activate_in_place(self.tapped.inner)

    @torch.no_grad()
    def answers(self, batch: Batch) -> list[Tensor]:
        """The floating-point outputs for a batch, without autocast: what agreement is measured against."""
        return flatten_outputs(self.tapped(*tensors_of(batch))[0])

    @torch.no_grad()
    def targets(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What students are to learn from a batch: outputs, and features at the taps."""
        with self._precision.autocast():
            output, features = self.tapped(*tensors_of(batch))
        return flatten_outputs(output), features

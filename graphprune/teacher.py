"""The frozen teacher: the model that students begin as and learn from.

Where a batch has several views of each image, shifted and mirrored, their mean answer is what students learn for each
of them. It is right more often than one answer and less certain where the answers differ, and it costs nothing: the
views are images of the batch anyway.

Source: Radosavovic et al. 2018, "Data distillation: towards omni-supervised learning", section 3 (there the ensembled
answers become labels; here they are the soft targets of every view).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphprune.distill import flatten_outputs
from graphprune.passes.errors import UsageError
from graphprune.precision import Precision

if TYPE_CHECKING:
    from graphprune.passes.fx.capture import CapturedModule

__all__ = ["Teacher"]


class Teacher:
    """A model in inference mode, asked for outputs and features.

    Attributes:
        module: a copy of the model, in the number format and memory layout of the run.

    Args:
        model: it is not modified.
        taps: names of the nodes whose features are compared.
        views: of each image, next to one another in a batch.
    """

    def __init__(self, model: "CapturedModule", taps: Sequence[str], views: int = 1) -> None:
        self.module = copy.deepcopy(model).eval()
        self._taps = taps
        self._views = views
        self.use(Precision())

    def use(self, precision: Precision) -> None:
        """Compute from now on like this."""
        self._precision = precision
        precision.convert_(self.module)
        self.tapped = self.module.with_taps(self._taps)
        self.tapped.eval()

    @torch.no_grad()
    def answers(self, batch: Tensor) -> list[Tensor]:
        """The floating-point outputs for a batch, without autocast."""
        return flatten_outputs(self.tapped(batch)[0])

    @torch.no_grad()
    def targets(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What students are to learn from a batch: outputs, the mean over the views of an image, and features.

        Raises:
            UsageError: there are several views, and an output has positions that move with the image.
        """
        with self._precision.autocast():
            output, features = self.tapped(batch)
        outputs = flatten_outputs(output)
        if self._views > 1:
            outputs = [_mean_over_views(answer, self._views) for answer in outputs]
        return outputs, features


def _mean_over_views(answers: Tensor, views: int) -> Tensor:
    """Shapes: answers (images * views, n); returns the same, all views of an image alike."""
    if answers.ndim != 2:
        raise UsageError(
            f"--views takes the mean of the answers to shifted and mirrored images, and an output of shape "
            f"{tuple(answers.shape)} has positions that move with them: leave it out"
        )
    mean = answers.reshape(-1, views, answers.shape[1]).mean(1)
    return mean.repeat_interleave(views, 0)

"""How far students agree with their teacher on images that are never trained on."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphprune.data import Source
from graphprune.data.batches import Batch, evaluation_batches, tensors_of
from graphprune.importance.output_loss import OutputLoss, flatten_outputs
from graphprune.training.start import Standing

if TYPE_CHECKING:
    from graphprune.training.student import Student

__all__ = ["HeldOut"]

_BATCH = 256
_TIMES = 4  # the batch of a step, which keeps its activations for the backward pass


class HeldOut:
    """Images held out of a run.

    Args:
        images: what no step learns from.
        teacher: outputs for a batch.
        loss: how outputs are compared.
        prepare: a batch in the number format and memory layout of the run.
        batch_size: of a training step.
    """

    def __init__(
        self,
        images: Source,
        teacher: Callable[[Batch], list[Tensor]],
        loss: OutputLoss,
        prepare: Callable[[Batch], Batch],
        batch_size: int,
    ) -> None:
        self.images = images
        self._teacher = teacher
        self._loss = loss
        self._prepare = prepare
        self._batch = min(_BATCH, _TIMES * batch_size)
        self._answers: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def agreement(self, student: "Student") -> float:
        """See `OutputLoss.agreement`; NaN without images. The student goes on learning."""
        student.tapped.eval()
        shares, sizes = [], []
        for number, images in enumerate(evaluation_batches(self.images, self._batch)):
            batch = self._prepare(images)
            output = flatten_outputs(student.tapped(*tensors_of(batch))[0])
            shares.append(self._loss.agreement(self._answer(number, batch), output))
            sizes.append(len(batch))
        student.learn_on()
        return float(np.average(shares, weights=sizes)) if sizes else math.nan

    @torch.no_grad()
    def standing(self, student: "Student") -> Standing:
        """Agreement and loss on outputs; the student goes on learning."""
        student.tapped.eval()
        losses, sizes = [], []
        for images in evaluation_batches(self.images, self._batch):
            batch = self._prepare(images)
            found = flatten_outputs(student.tapped(*tensors_of(batch))[0])
            losses.append(float(self._loss(self._teacher(batch), found)))
            sizes.append(len(batch))
        student.learn_on()
        return Standing(self.agreement(student), float(np.average(losses, weights=sizes)) if sizes else math.nan)

    def _answer(self, number: int, batch: Batch) -> list[Tensor]:
        """The teacher's; classes are small and asked for only once."""
        if number in self._answers:
            return self._answers[number]
        answer = self._loss.answer(self._teacher(batch))
        if self._loss.is_classifier:
            self._answers[number] = answer
        return answer

"""What a student learns from besides the outputs: its teacher's features. No labels.

Notation as in docs/algorithm.md: T the teacher, S_1..S_N the students, F^l the features at tap l. The losses of the
outputs are in `graphprune.importance.output_loss`.

    L_feat = mean over l and samples of || F_T/||F_T|| - F_n/||F_n|| ||^2 = 2 - 2 cos(F_T, F_n)
             over the channels the student still has

All in float32 at least, whatever the precision of the networks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.importance.output_loss import in_full

_EPS = 1e-12


class FeatureLoss:
    """L_feat over the taps of one student, for the channels it still has.

    Args:
        channels: per tap (channel dimension, group of each channel or -1), `None` where it is not known.
        n_groups: number of channel groups.
    """

    def __init__(self, channels: Sequence[tuple[int, np.ndarray] | None], n_groups: int) -> None:
        self._dims = [1 if c is None else c[0] for c in channels]
        self._ids = [None if c is None else torch.from_numpy(np.where(c[1] < 0, n_groups, c[1])) for c in channels]
        self._kept = torch.ones(n_groups + 1, dtype=torch.bool)  # the last is that of channels without a group
        self._present = self._kept.clone()
        self._prepare()

    def keep(self, kept: Tensor) -> None:
        """Compare from now on only channels whose group is in the mask `kept` of shape (n_groups,)."""
        self._kept[:-1] = kept
        self._prepare()

    def reduce_to(self, present: Tensor) -> None:
        """The student has from now on only channels whose group is in the mask `present` of shape (n_groups,)."""
        self._present[:-1] = present
        self._prepare()

    def _prepare(self) -> None:
        """Per tap: which of the teacher's channels the student has, and which of those are compared (None: all)."""
        self._chosen: list[Tensor | None] = []
        self._masks: list[Tensor | None] = []
        for ids in self._ids:
            has = None if ids is None else self._present[ids]
            self._chosen.append(None if has is None or bool(has.all()) else torch.nonzero(has).flatten())
            mask = None if ids is None or has is None else self._kept[ids[has]]
            self._masks.append(None if mask is None or bool(mask.all()) else mask)

    def __call__(self, teacher: Sequence[Tensor], student: Sequence[Tensor | None]) -> Tensor:
        """Mean over taps and samples. Shapes: features are (batch, ...) with the channels in any dimension.

        Args:
            teacher: features at all taps.
            student: the same; None where all channels of the tap are removed.
        """
        losses = [
            t.new_zeros(()) if s is None else self._distance(t.detach(), s, tap)
            for tap, (t, s) in enumerate(zip(teacher, student, strict=True))
        ]
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _distance(self, teacher: Tensor, student: Tensor, tap: int) -> Tensor:
        dim, chosen, mask = self._dims[tap], self._chosen[tap], self._masks[tap]
        if student.ndim == 4 and student.is_contiguous(memory_format=torch.channels_last):  # as it lies in memory
            teacher, student, dim = teacher.movedim(1, 3), student.movedim(1, 3), {1: 3, 2: 1, 3: 2}[dim]
        if chosen is not None:
            self._chosen[tap] = chosen = chosen.to(teacher.device)  # moves once
            if dim == teacher.ndim - 1:  # quicker there than `index_select`
                teacher = teacher.gather(dim, chosen.expand(*teacher.shape[:-1], -1))
            else:
                teacher = teacher.index_select(dim, chosen)
        # Before the products: those of bfloat16 have three digits, and close features differ by less.
        teacher, student = in_full(teacher), in_full(student)
        if mask is not None:
            factors = mask.to(student).reshape([-1 if d == dim else 1 for d in range(student.ndim)])
            teacher, student = teacher * factors, student * factors
        return _cosine_distance(teacher.flatten(1), student.flatten(1)).mean()


class _CosineDistance(torch.autograd.Function):
    """2 - 2 cos(teacher, student) of each sample, with a gradient for the student alone.

    Features are large, and torch's own derivative of the formula goes over them more often.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        """Shapes: (batch, n) both; returns (batch,)."""
        norms = torch.linalg.vector_norm(teacher, dim=1), torch.linalg.vector_norm(student, dim=1)
        product = norms[0] * norms[1]
        # A sample without any activation to compare has nothing to learn from: it must not count as orthogonal.
        is_nothing = product.square() <= _EPS
        inverse = torch.where(is_nothing, torch.zeros_like(product), 1 / product)
        cosine = (teacher * student).sum(1) * inverse
        ctx.save_for_backward(teacher, student, inverse, cosine * inverse * norms[0] / norms[1].clamp_min(_EPS))
        return torch.where(is_nothing, torch.zeros_like(cosine), 2 - 2 * cosine)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """By d cos / d student = teacher / (|teacher| |student|) - cos student / |student|^2."""
        teacher, student, inverse, own = ctx.saved_tensors
        found = teacher * (-2 * gradient * inverse)[:, None]
        return None, found.addcmul_(student, (2 * gradient * own)[:, None])


_cosine_distance: Callable[[Tensor, Tensor], Tensor] = _CosineDistance.apply

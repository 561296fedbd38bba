"""What a training run tells while it lasts, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from graphprune.passes.channels.plan import PruningPlan
    from graphprune.training.start import Standing

__all__ = ["Observer", "Progress", "StudentResult"]

Observer = Callable[[nn.Module], Mapping[str, float]]
"""Looks at a student in inference mode and returns numbers for its history; nothing is decided by them."""


class Progress(Protocol):
    """Told after every step how a run goes."""

    def __call__(self, step: int, total: int, loss: float, cost: dict[str, float], phase: str) -> None:
        """`step` of `total` is done; `cost` holds shares of the dense model's, of the first student."""


@dataclass(frozen=True)
class StudentResult:
    """What became of one student.

    Attributes:
        number: which of the students it was.
        state_dict: parameters and buffers, dense shapes, removed groups exactly zero.
        removed: (n_groups,) mask of the removed groups.
        plan: the same as a plan.
        cost: shares of the dense model's multiply-accumulates and parameters.
        agreement: with the teacher, on the held-out images.
        history: one record per measurement: step, epoch, phase, losses, agreement, cost.
        start: how what the student began as stands on the held-out images, where that was no copy of the teacher.
        is_start: whether it is that, because learning has harmed.
    """

    number: int
    state_dict: dict[str, Tensor]
    removed: np.ndarray
    plan: "PruningPlan"
    cost: dict[str, float]
    agreement: float
    history: list[dict[str, Any]]
    start: "Standing | None" = None
    is_start: bool = False

"""When a training has gone wrong beyond repair."""

import math

from graphprune.passes.errors import TrainingError

__all__ = ["Divergence"]

_DIVERGED = 10.0  # times the loss of a network that knows nothing
_FORGETTING = 0.02  # a step


class Divergence:
    """Notices that the loss is not finite, or that answers have long been worse than one answer to everything.

    Args:
        ignorance: loss on outputs of a network that gives the same answer to everything.
        lr: peak learning rate, for the advice.

    Attributes:
        worst: running mean of the worst student's loss on outputs.
    """

    def __init__(self, ignorance: float, lr: float) -> None:
        self.ignorance = ignorance
        self.lr = lr
        self.worst = 0.0

    @property
    def is_far_off(self) -> bool:
        """Whether nothing points to it: answers are better than one answer to everything."""
        return self.worst <= self.ignorance

    def refuse(self, step: int, loss: float, worst: float) -> None:
        """Look at one more step.

        Args:
            step: its number, from 0.
            loss: the whole loss, mean over students.
            worst: the worst student's loss on outputs.

        Raises:
            TrainingError: there is no use in going on.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {step + 1}; start afresh with a lower `lr` (now {self.lr:g})"
            )
        self.worst += _FORGETTING * (worst - self.worst)
        if self.worst > _DIVERGED * self.ignorance:
            raise TrainingError(
                f"the training has diverged by step {step + 1}: the answers have come to be much further from "
                f"the model's own than one answer to all images; start afresh with a lower `lr` (now {self.lr:g})"
            )

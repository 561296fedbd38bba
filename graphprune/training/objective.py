"""What the students of a step minimize, and which of them learn in it.

    L_n = l1 L_out + l2 L_feat + l3 L_mut         (graphprune.training.distill)
    L   = sum of L_n over the students that learn in the step

Students learn from each other, but none from one with a tighter budget: that one knows less than it can itself, and
drags it away from the teacher (`benchmarks/family`).

Where not all learn in every step they take turns, so that a run of several costs less: all share batch and teacher, and
each has so many fewer steps. The course of their sets is that of the run's steps all the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.config import CompressConfig
from graphprune.importance.output_loss import OutputLoss, flatten_outputs, mutual_loss

if TYPE_CHECKING:
    from graphprune.training.student import Student

__all__ = ["Objective", "learning_at"]

Answer = tuple[Any, list[Tensor | None]]  # outputs, features at the taps


def learning_at(step: int, students: "Sequence[Student]", number: int) -> "list[Student]":
    """The students that learn in a step: `number` of them, in turns; 0 = all."""
    if not number:
        return list(students)
    first = step * number
    turn = {(first + place) % len(students) for place in range(number)}
    return [student for student in students if student.number in turn]


class Objective:
    """The loss of a step.

    Args:
        config: weights of the terms.
        loss: compares outputs.
    """

    def __init__(self, config: CompressConfig, loss: OutputLoss) -> None:
        self._config = config
        self._loss = loss
        budgets = [config.budget(number) for number in range(config.n_students)]
        self._learns_from = [
            [other for other, theirs in enumerate(budgets) if other != number and not theirs.is_tighter_than(own)]
            for number, own in enumerate(budgets)
        ]

    def __call__(
        self, target: list[Tensor], target_features: list[Tensor], students: "Sequence[Student]", answers: list[Answer]
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """The sum of the students' losses, and the terms of each.

        Args:
            target: outputs that are to be learned.
            target_features: features at all taps.
            students: those that learn.
            answers: theirs.
        """
        config = self._config
        outputs = {s.number: flatten_outputs(output) for s, (output, _) in zip(students, answers, strict=True)}
        totals, records = [], []
        for student, (_, features) in zip(students, answers, strict=True):
            own = outputs[student.number]
            terms = {"out": config.lambda_out * self._loss(target, own)}
            if config.lambda_feature:
                terms["feature"] = config.lambda_feature * student.features(target_features, features)
            if others := [outputs[number] for number in self._learns_from[student.number] if number in outputs]:
                terms["mutual"] = config.lambda_mutual * mutual_loss(self._loss, others, own)
            totals.append(torch.stack(list(terms.values())).sum())
            records.append({name: float(term.detach()) for name, term in terms.items()})
        # A mean would make each student's gradient, and so its learning rate, depend on how many there are.
        return torch.stack(totals).sum(), records

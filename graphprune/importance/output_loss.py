"""How far the outputs of two networks are apart, as a loss with a gradient. No labels.

Notation as in docs/algorithm.md: T the teacher, S_1..S_N the students, p = softmax(z / tau).

    L_out  = tau^2 KL(p_T || p_n)                                      classifiers
             mean (y_T - y_n)^2 / spread of y_T, mean over outputs        everything else
    L_mut  = mean over m != n of tau^2 KL(sg(p_m) || p_n)

All in float32 at least, whatever the precision of the networks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.passes.errors import UsageError
from graphprune.verification.closeness import are_classes

OutputKind = Literal["logits", "probabilities", "values"]

_EPS = 1e-12


def in_full(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if that is what it comes in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def flatten_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, whatever lists, tuples and dicts they come in."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in flatten_outputs(value)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for value in output for tensor in flatten_outputs(value)]
    return []


def output_kind(outputs: Sequence[Tensor], setting: str) -> OutputKind:
    """What the teacher's outputs are: one (batch, classes) tensor is a classifier's, unless `setting` is "mse".

    Args:
        outputs: the teacher's outputs on a batch.
        setting: "auto", "kl" or "mse".

    Raises:
        UsageError: "kl", and an output has no classes.
    """
    if not are_classes([output.shape for output in outputs], setting):
        return "values"
    for output in outputs:
        if output.ndim < 2 or output.shape[1] < 2:
            raise UsageError(
                '`output_loss="kl"` compares classes, and the model has an output of shape '
                f"({', '.join(map(str, output.shape))}), not (batch, classes, ...): take mse"
            )
    first = outputs[0].float()
    sums = first.sum(1)
    is_distribution = bool((first >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    return "probabilities" if is_distribution else "logits"


def describe_outputs(kind: OutputKind, setting: str) -> str:
    """What the outputs are taken for, and where that was a guess, how to say otherwise."""
    name = "numbers" if kind == "values" else f"class {kind}"
    if setting != "auto":
        return name
    other, what = ("kl", "class logits") if kind == "values" else ("mse", "numbers")
    return f'{name}; `output_loss="{other}"` if they are {what}'


class OutputLoss:
    """L_out and L_mut for one kind of output.

    Args:
        kind: what the outputs are.
        temperature: tau, for classifiers.
        spreads: of each of the teacher's outputs, for values; see `spreads_of`. Those of a batch would not do: one of
            an output that is hardly ever another one than usual has none.
    """

    def __init__(self, kind: OutputKind, temperature: float, spreads: Sequence[float] = ()) -> None:
        self.kind = kind
        self.temperature = temperature
        self.spreads = spreads

    def __call__(self, target: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Distance of a student's outputs to a target's; no gradient flows into the target."""
        pairs = [(in_full(t.detach()), in_full(s)) for t, s in zip(target, outputs, strict=True)]
        if self.kind == "values":
            losses = [(t - s).square().mean() / spread for (t, s), spread in zip(pairs, self.spreads, strict=True)]
        else:
            losses = [self._divergence(t, s) for t, s in pairs]
        return torch.stack(losses).mean()

    def of_ignorance(self, target: Sequence[Tensor]) -> float:
        """The loss of a network that gives the same answer to everything.

        Values: relative squared error 1, by definition. Classes: tau^2 log(classes), the divergence of uniform answers
        from certain ones.
        """
        return 1.0 if self.kind == "values" else self.temperature**2 * math.log(target[0].shape[1])

    def _divergence(self, target: Tensor, output: Tensor) -> Tensor:
        log_p = torch.log_softmax(self.logits(target) / self.temperature, dim=1)
        log_q = torch.log_softmax(self.logits(output) / self.temperature, dim=1)
        return (log_p.exp() * (log_p - log_q)).sum(1).mean() * self.temperature**2

    def logits(self, output: Tensor) -> Tensor:
        """What softmax makes the classes' probabilities of, up to a shift."""
        return output.clamp_min(1e-7).log() if self.kind == "probabilities" else output

    def answer(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What agreement is one of: the predicted class of every sample (and position), or the values themselves."""
        return list(outputs) if self.kind == "values" else [outputs[0].argmax(1)]

    def agreement(self, answer: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        """Share of samples of the class of the target's `answer`; for values 1 - relative squared error, at least 0."""
        if self.kind == "values":
            return max(0.0, 1.0 - float(self(answer, outputs)))
        return float((answer[0] == self.answer(outputs)[0]).float().mean())


def spreads_of(answers: Iterable[Sequence[Tensor]]) -> list[float]:
    """Mean squared distance of each output to its mean, over batches of them.

    Args:
        answers: the outputs for each batch.
    """
    sums: list[Tensor] = []
    for outputs in answers:
        found = [
            torch.stack([o.new_tensor(o.numel()), o.sum(), o.square().sum()]) for o in (o.double() for o in outputs)
        ]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    means = [(total / count, squares / count) for count, total, squares in sums]
    return [max(float(squares - mean.square()), _EPS) for mean, squares in means]


def mutual_loss(loss: OutputLoss, others: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]) -> Tensor:
    """Mean distance of one student's outputs to those of others, which receive no gradient from it."""
    return torch.stack([loss(other, outputs) for other in others]).mean()

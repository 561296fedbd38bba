"""How far the outputs of two networks are apart, as a loss with a gradient. No labels.

Notation as in docs/algorithm.md: T the teacher, S_1..S_N the students, p = softmax(z / tau), q = sigmoid(z).

    L_out  = mean over what is learned (`graphprune.importance.learned`) of
             tau^2 KL(p_T || p_n)                                      classes
             KL(q_T || q_n) / KL(q_T || mean of q_T)                   scores that do not exclude each other
             (y_T - y_n)^2 / spread of y_T                             numbers
    L_mut  = mean over m != n of the same with m in place of T; no gradient reaches m

All in float32 at least, whatever the precision of the networks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from graphprune.passes.errors import UsageError
from graphprune.verification.output_kinds import kinds_of

_EPS = 1e-12


@dataclass(frozen=True)
class Form:
    """What a tensor that is learned holds.

    Attributes:
        name: "logits" or "probabilities" of classes that exclude each other, "scores" that do not, before their
            sigmoid, or "values", which are numbers.
        axis: dimension of the classes.
    """

    name: Literal["logits", "probabilities", "scores", "values"]
    axis: int = 1

    @property
    def is_classes(self) -> bool:
        """Whether it is a distribution over classes."""
        return self.name in ("logits", "probabilities")


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


def forms_of(tensors: Sequence[Tensor], setting: str, known: Sequence[Form | None] = ()) -> tuple[Form, ...]:
    """What tensors that are learned hold: what the graph says, and else what shape and numbers do.

    Args:
        tensors: the teacher's on a batch.
        setting: "auto", "kl" or "mse".
        known: what the graph says of each.

    Raises:
        UsageError: "kl", and one has no classes.
    """
    known = known or [None] * len(tensors)
    kinds = kinds_of([tensor.shape for tensor in tensors], setting)
    return tuple(
        form or (_classes_of(tensor) if kind.name == "classes" else Form("values"))
        for tensor, form, kind in zip(tensors, known, kinds, strict=True)
    )


def _classes_of(tensor: Tensor) -> Form:
    if tensor.ndim < 2 or tensor.shape[1] < 2:
        raise UsageError(
            '`output_loss="kl"` compares classes, and the model has an output of shape '
            f"({', '.join(map(str, tensor.shape))}), not (batch, classes, ...): take mse"
        )
    first = tensor.float()
    sums = first.sum(1)
    is_distribution = bool((first >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    return Form("probabilities" if is_distribution else "logits")


_NAMES: Mapping[str, str] = {
    "logits": "class logits",
    "probabilities": "class probabilities",
    "scores": "scores",
    "values": "numbers",
}


def describe_forms(forms: Sequence[Form], setting: str) -> str:
    """What the outputs are taken for, and where that was a guess, how to say otherwise."""
    counts = {form: list(forms).count(form) for form in forms}
    name = ", ".join(
        _NAMES[form.name]
        + (f" along dimension {form.axis}" if form.is_classes and form.axis != 1 else "")
        + (f" ({count} tensors)" if count > 1 else "")
        for form, count in counts.items()
    )
    if setting != "auto":
        return name
    other, what = ("mse", "numbers") if any(f.name != "values" for f in forms) else ("kl", "class logits")
    return f'{name}; `output_loss="{other}"` if they are {what}'


class OutputLoss:
    """L_out and L_mut for what is learned.

    Args:
        forms: what each tensor holds.
        temperature: tau, for classes.
        spreads: of each of the teacher's tensors, see `spreads_of`. Those of a batch would not do: one of an output
            that is hardly ever another one than usual has none.
    """

    def __init__(self, forms: Sequence[Form], temperature: float, spreads: Sequence[float] = ()) -> None:
        self.forms = tuple(forms)
        self.temperature = temperature
        self.spreads = tuple(spreads) or (1.0,) * len(self.forms)

    def __call__(self, target: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Distance of a student's tensors to a target's; no gradient flows into the target."""
        pairs = [(in_full(t.detach()), in_full(s)) for t, s in zip(target, outputs, strict=True)]
        losses = [self._of(at, t, s) for at, (t, s) in enumerate(pairs)]
        return torch.stack(losses).mean()

    def _of(self, at: int, target: Tensor, output: Tensor) -> Tensor:
        form = self.forms[at]
        if form.is_classes:
            return self._divergence(form, target, output)
        distance = _score_divergence(target, output) if form.name == "scores" else (target - output).square().mean()
        return distance / self.spreads[at]

    def of_ignorance(self, target: Sequence[Tensor]) -> float:
        """The loss of a network that gives the same answer to everything.

        Numbers and scores: 1, by definition. Classes: tau^2 log(classes), the divergence of uniform answers from
        certain ones.
        """
        each = [
            self.temperature**2 * math.log(tensor.shape[form.axis]) if form.is_classes else 1.0
            for form, tensor in zip(self.forms, target, strict=True)
        ]
        return sum(each) / len(each)

    def _divergence(self, form: Form, target: Tensor, output: Tensor) -> Tensor:
        log_p, log_q = (
            torch.log_softmax(logits(form, tensor) / self.temperature, dim=form.axis) for tensor in (target, output)
        )
        return (log_p.exp() * (log_p - log_q)).sum(form.axis).mean() * self.temperature**2

    @property
    def is_classifier(self) -> bool:
        """Whether all that is learned is classes."""
        return all(form.is_classes for form in self.forms)

    def answer(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What agreement is one of: the class at every place, and for others the tensor itself."""
        return [o.argmax(f.axis) if f.is_classes else o for f, o in zip(self.forms, outputs, strict=True)]

    def agreement(self, answer: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        """Share of places of the class of the target's `answer`, of several tensors the lowest.

        Where numbers or scores are learned, it is 1 - the loss of these, at least 0.
        """
        shares, losses = [], []
        for at, (form, wanted, output) in enumerate(zip(self.forms, answer, outputs, strict=True)):
            if form.is_classes:
                shares.append(float((wanted == output.argmax(form.axis)).float().mean()))
            else:
                losses.append(float(self._of(at, in_full(wanted), in_full(output))))
        if losses:
            shares.append(max(0.0, 1.0 - sum(losses) / len(losses)))
        return min(shares)


def logits(form: Form, tensor: Tensor) -> Tensor:
    """What softmax makes the classes' probabilities of, up to a shift."""
    return tensor.clamp_min(1e-7).log() if form.name == "probabilities" else tensor


def _score_divergence(target: Tensor, output: Tensor) -> Tensor:
    """Mean KL(q_T || q) of scores, given before their sigmoid."""
    log = functional.logsigmoid
    share = target.sigmoid()
    return (share * (log(target) - log(output)) + (1 - share) * (log(-target) - log(-output))).mean()


def spreads_of(answers: Iterable[Sequence[Tensor]], forms: Sequence[Form] = ()) -> list[float]:
    """How far each tensor is from its mean, over batches of them: what the loss of the mean answer is.

    Args:
        answers: the tensors for each batch.
        forms: what they hold; by default numbers. Of classes it is 1.
    """
    sums: list[Tensor] = []
    for tensors in answers:
        forms = forms or [Form("values")] * len(tensors)
        found = [_SUMS[form.name](tensor.double()) for form, tensor in zip(forms, tensors, strict=True)]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return [_SPREADS[form.name](total) for form, total in zip(forms, sums, strict=True)]


def _sums(tensor: Tensor) -> Tensor:
    return torch.stack([tensor.new_tensor(tensor.numel()), tensor.sum(), tensor.square().sum()])


def _score_sums(tensor: Tensor) -> Tensor:
    """Number, sum of the shares, and sum of their entropies."""
    entropy = functional.binary_cross_entropy_with_logits(tensor, tensor.sigmoid(), reduction="sum")
    return torch.stack([tensor.new_tensor(tensor.numel()), tensor.sigmoid().sum(), entropy])


def _variance(total: Tensor) -> float:
    count, sum_, squares = total.tolist()
    return max(squares / count - (sum_ / count) ** 2, _EPS)


def _score_spread(total: Tensor) -> float:
    count, shares, entropy = total.tolist()
    mean = min(max(shares / count, _EPS), 1 - _EPS)
    return max(-mean * math.log(mean) - (1 - mean) * math.log1p(-mean) - entropy / count, _EPS)


_SUMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "values": _sums,
    "scores": _score_sums,
    **dict.fromkeys(("logits", "probabilities"), lambda tensor: tensor.new_zeros(3)),
}
_SPREADS: Mapping[str, Callable[[Tensor], float]] = {
    "values": _variance,
    "scores": _score_spread,
    **dict.fromkeys(("logits", "probabilities"), lambda total: 1.0),
}


def mutual_loss(loss: OutputLoss, others: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]) -> Tensor:
    """Mean distance of one student's outputs to those of others, which receive no gradient from it."""
    return torch.stack([loss(other, outputs) for other in others]).mean()

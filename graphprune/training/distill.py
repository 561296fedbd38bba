"""What a student learns from: its teacher's outputs and features, and the other students' outputs. No labels.

Notation as in docs/algorithm.md: T the teacher, S_1..S_N the students, p = softmax(z / tau), F^l the features at tap l.

    L_out  = tau^2 KL(p_T || p_n)                                      classifiers
             mean (y_T - y_n)^2 / spread of y_T, mean over outputs        everything else
    L_feat = mean over l and samples of || F_T/||F_T|| - F_n/||F_n|| ||^2 = 2 - 2 cos(F_T, F_n)
             over the channels the student still has
    L_mut  = mean over m != n of tau^2 KL(sg(p_m) || p_n)

All in float32 at least, whatever the precision of the networks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.closeness import are_classes
from graphprune.passes.errors import UsageError

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
                "--output-loss kl compares classes, and the model has an output of shape "
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
    other = "kl if they are class logits" if kind == "values" else "mse if they are numbers"
    return f"{name}; --output-loss {other}"


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

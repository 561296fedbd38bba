"""Which layers stay in float32 so that the int8 model still answers as the float one does.

    1. every layer in int8; where that is not enough, again with another calibration of the activations
    2. all but the first and the last: the first sees the image, the last gives the answer
    3. all but these and the k most sensitive ones, k as small as reaches the target

A layer's sensitivity is what the outputs change when it alone is in int8 (Wu et al. 2020, "Integer quantization for
deep learning inference", section 5.2). k is found by doubling and bisection, so the number of trials is that of the
layers plus a few.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graphprune.data import ImageSource
from graphprune.data.samples import Samples
from graphprune.int8.quantizer import Calibrated
from graphprune.int8.scheme import Scheme
from graphprune.passes.errors import UnsupportedModelError
from graphprune.verification.accuracy import batches_of
from graphprune.verification.agreement import Agreement
from graphprune.verification.model_runner import open_runner
from graphprune.verification.numbers import Numbers
from graphprune.verification.output_kinds import are_floats, ends_of, kinds_of

__all__ = ["Choice", "Judge", "Trial", "choose_layers", "describe_miss"]

logger = logging.getLogger("graphprune")

#: Images for the sensitivity of a single layer.
_FEW = 64


@dataclass(frozen=True)
class Trial:
    """One choice of layers that was tried.

    Attributes:
        calibration: how the ranges of the activations were chosen.
        float_layers: number of layers left in float32.
        agreement: share of images on which the int8 model gives the class that the float one does; None for networks
            without classes.
        distance: squared distance of the outputs, relative to their spread; that of the worst part of the worst one.
        unit: what the agreement is a share of, "images" or "pixels".
        worst: which part that is, in words; "" if there is one alone.
    """

    calibration: str
    float_layers: int
    agreement: float | None
    distance: float
    unit: str = "images"
    worst: str = ""

    @property
    def fidelity(self) -> float:
        """What the target is compared with: the agreement, or for other networks 1 - distance."""
        return max(0.0, 1 - self.distance) if self.agreement is None else self.agreement


def describe_miss(trial: Trial, target: float) -> str:
    """How a trial falls short of the fidelity asked for, to go after the name of a file."""
    if trial.agreement is None:
        return f"{_says(trial)}; at most {100 * (1 - target):.2f} % were asked for"
    return f"{_says(trial)}; {100 * target:.2f} % were asked for"


def _says(trial: Trial) -> str:
    """What a trial has shown."""
    if trial.agreement is None:
        worst = f" (worst: {trial.worst})" if trial.worst else ""
        return f"the squared error of the outputs of int8 is {100 * trial.distance:.2f} % of float32's variance{worst}"
    return f"int8 gives the answer of float32 on {100 * trial.agreement:.2f} % of the {trial.unit}"


@dataclass(frozen=True)
class Choice:
    """The layers left in float32, and how they were found.

    Attributes:
        model: the quantized model.
        scheme: which integers stand for what in it.
        float_layers: names of their nodes.
        trial: what was measured with this choice.
        reached: whether it meets the target.
        trials: all choices tried, in their order.
        sensitivity: what the outputs change with this layer alone in int8, by name; empty where it was not needed.
        float_end: why the end of the network stays in float32 beside these layers, if it does.
    """

    model: bytes
    scheme: Scheme
    float_layers: tuple[str, ...]
    trial: Trial
    reached: bool
    trials: tuple[Trial, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    float_end: tuple[str, ...] = ()


class Judge:
    """Compares models with the float one on images, whose answers are computed once.

    Args:
        reference: the float model.
        images: what to compare on.
        threads: of onnxruntime.
        output_loss: what the outputs are: "kl" scores of classes, "mse" numbers, "auto" scores if it is a single one
            of shape (batch, classes).

    Attributes:
        not_compared: what could not be compared on these images, in words.

    Raises:
        UnsupportedModelError: the model has no output of numbers.
        VerificationError: there is nothing to compare on these images.
    """

    def __init__(
        self, reference: Path | bytes, images: ImageSource | Samples, threads: int = 1, *, output_loss: str = "auto"
    ) -> None:
        self._numbers, self._threads = Numbers.of(reference, reference), threads
        runner = open_runner(reference, label="the float model", threads=threads, watched=self._numbers.watched[0])
        every = [(batch, len(positions)) for positions, batch in batches_of(images, runner, step=self._numbers.step)]
        # As arrays for all inputs, how many of the samples count, and how many are run.
        self._batches = [
            ([batch] if isinstance(batch, np.ndarray) else batch, rows, runner.fixed_batch or rows)
            for batch, rows in every
        ]
        answers = [runner.answer(arrays) for arrays, _, _ in self._batches]
        outputs = answers[0][0]
        if not outputs or not all(np.issubdtype(o.dtype, np.number) or o.dtype == bool for o in outputs):
            raise UnsupportedModelError("an output of the model is no array of numbers, so int8 cannot be compared")
        # All outputs count: agreement alone would pass over a class index beside the scores.
        floats = are_floats(outputs)
        ends = ends_of(self._numbers.pair.models[0])
        self._kinds = kinds_of([o.shape for o in outputs], output_loss, ends, self._batches[0][2], floats)
        self._expected = [self._numbers.judged(0, *answer) for answer in answers]
        seen = self._numbers.distance()
        for (_, rows, run), expected in zip(self._batches, self._expected, strict=True):
            seen.see(expected, expected, rows, batch=run)
        self._numbers.worst(seen)
        self.not_compared = self._numbers.notes(seen)

    def __call__(self, model: bytes, calibration: str = "", float_layers: int = 0, limit: int | None = None) -> Trial:
        """Compare on all images, or on the first `limit`."""
        numbers = self._numbers.against(model)
        runner = open_runner(model, label="the int8 model", threads=self._threads, watched=numbers.watched[1])
        agreement, distance, seen = Agreement(), numbers.distance(), 0
        for (arrays, rows, run), expected in zip(self._batches, self._expected, strict=True):
            found = numbers.judged(1, *runner.answer(arrays))
            agreement.see(expected[: len(self._kinds)], found[: len(self._kinds)], self._kinds, rows=rows)
            distance.see(expected, found, rows, batch=run)
            seen += rows
            if limit is not None and seen >= limit:
                break
        worst = numbers.worst(distance)
        where = numbers.describe(worst)
        return Trial(calibration, float_layers, agreement.share, worst.distance, agreement.unit, where)


def choose_layers(candidates: Iterable[Calibrated], judge: Judge, target: float, limit: int) -> Choice:
    """Return the choice that leaves the fewest layers in float32 and reaches the target; else the best one tried.

    Args:
        candidates: the model, calibrated in one way or another. A later one is asked for only if those before miss the
            target with all layers in int8, since another range of the activations costs no time when the model runs.
        judge: compares a choice with the float model.
        target: fidelity to reach, 0..1.
        limit: layers that may be left in float32.
    """
    search = _Search(judge, target)
    for candidate in candidates:
        if search.try_whole(candidate):
            return search.best()
    calibrated = search.calibrated
    ends = tuple(dict.fromkeys((*calibrated.layers[:1], *calibrated.layers[-1:])))
    if limit < 1 or (len(ends) <= limit and search.try_without(ends)):
        return search.best()
    sensitivity = {name: judge(calibrated.quantized(only=[name]), limit=_FEW).distance for name in calibrated.layers}
    ranked = sorted(calibrated.layers, key=lambda name: -sensitivity[name])
    if len(ends) <= limit:  # with less room than that, the most sensitive ones alone
        ranked = [*ends, *(name for name in ranked if name not in ends)]
    least = len(ends) + 1 if len(ends) <= limit else 1
    search.bisect(ranked[:limit], least)
    return search.best(sensitivity)


class _Search:
    def __init__(self, judge: Judge, target: float) -> None:
        self._judge, self._target = judge, target
        self._tried: list[tuple[tuple[str, ...], bytes, Trial, Scheme]] = []
        self.calibrated: Calibrated

    def try_whole(self, candidate: Calibrated) -> bool:
        """Try all layers in int8; the candidate that does best so is kept for what follows."""
        before = self._tried[-1][2].fidelity if self._tried else -1.0
        previous = getattr(self, "calibrated", candidate)
        self.calibrated = candidate
        reached = self.try_without(())
        if self._tried[-1][2].fidelity <= before:
            self.calibrated = previous
        return reached

    def try_without(self, names: Sequence[str]) -> bool:
        model = self.calibrated.quantized(without=names)
        trial = self._judge(model, self.calibrated.scheme.calibration, len(names))
        self._tried.append((tuple(names), model, trial, self.calibrated.scheme))
        logger.info(
            "%s, with %d of %d layers left in float32 (%s)",
            *(_says(trial), len(names), len(self.calibrated.layers), trial.calibration),
        )
        return trial.fidelity >= self._target

    def bisect(self, ranked: Sequence[str], least: int) -> None:
        """Find the shortest beginning of `ranked` that reaches the target; fidelity is taken to grow with it."""
        low, high = least - 1, least
        while high < len(ranked) and not self.try_without(ranked[:high]):
            low, high = high, 2 * high
        if high >= len(ranked):
            high = len(ranked)
            if high <= low or not self.try_without(ranked):
                return
        while high - low > 1:
            middle = (low + high) // 2
            if self.try_without(ranked[:middle]):
                high = middle
            else:
                low = middle

    def best(self, sensitivity: dict[str, float] | None = None) -> Choice:
        reached = [entry for entry in self._tried if entry[2].fidelity >= self._target]
        if reached:
            names, model, trial, scheme = min(reached, key=lambda entry: len(entry[0]))
        else:
            names, model, trial, scheme = max(self._tried, key=lambda entry: (entry[2].fidelity, -len(entry[0])))
        trials = tuple(t for _, _, t, _ in self._tried)
        reasons = self.calibrated.end.reasons
        return Choice(model, scheme, names, trial, bool(reached), trials, sensitivity or {}, reasons)

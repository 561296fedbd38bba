"""What a slim model is worth: how often it agrees with the dense one, and how often each is right.

Measured on the ONNX files that are shipped, in onnxruntime. Labels are used here alone, and only when their classes
are as many as the outputs of the model.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from graphprune.data import Source
from graphprune.verification.agreement import Agreement, plain
from graphprune.verification.model_runner import Runner, open_runner
from graphprune.verification.numbers import BATCH, Numbers
from graphprune.verification.output_kinds import are_floats, ends_of, kinds_of
from graphprune.verification.own_metric import Metric, OwnMetric

__all__ = ["Quality", "batches_of", "measure_quality"]


@dataclass(frozen=True)
class Quality:
    """Quality of a slim model beside the dense one.

    Attributes:
        images: how many were looked at.
        source: where they came from.
        agreement: where all outputs give answers, how far these are the same (see `agreement`); None for other
            networks.
        distance: squared distance of the outputs, relative to the spread of the dense model's; that of the worst part.
        accuracy: share of images that each model puts into the class of its label; empty without labels.
        worst: which part of which output that is, "" if there is one alone.
        not_compared: what could not be compared, in words.
        outputs: by name, of those that give answers: their kind, the agreement, and what it is a share of.
        metric: the user's own measure, mean over the images; None where none was given.
    """

    images: int
    source: str
    agreement: float | None
    distance: float
    accuracy: dict[str, float] = field(default_factory=dict)
    worst: str = ""
    not_compared: tuple[str, ...] = ()
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric: float | None = None

    @property
    def same_paths(self) -> float | None:
        """Share of the sequences of which both models read the same, of several outputs the lowest; None without."""
        shares = [output["same_paths"] for output in self.outputs.values() if output.get("same_paths") is not None]
        return min(shares, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure_quality(
    dense: str | os.PathLike[str],
    slim: str | os.PathLike[str],
    source: Source,
    *,
    threads: int = 1,
    output_loss: str = "auto",
    metric: Metric | None = None,
) -> Quality:
    """Run both ONNX files on all images of `source` and compare their answers.

    Args:
        dense: the file to compare with.
        slim: the file in question.
        source: the images.
        threads: of onnxruntime.
        output_loss: what the outputs are, as in `CompressConfig`.
        metric: the user's own measure.

    Raises:
        VerificationError: there is nothing to compare on these images.
        UsageError: the user's own measure fails.
    """
    numbers = Numbers.of(dense, slim)
    names = ("dense", "slim")
    runners = {
        name: open_runner(file, threads=threads, watched=watched)
        for name, file, watched in zip(names, (dense, slim), numbers.watched, strict=True)
    }
    agreement, distance = Agreement(), numbers.distance()
    own = None if metric is None else OwnMetric(metric, numbers.names)
    ends = ends_of(numbers.pair.models[0])
    right: dict[str, int] | None = None if source.labels is None else dict.fromkeys(runners, 0)
    for positions, batch in batches_of(source, *runners.values(), step=numbers.step):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        answers = {name: runner.answer(inputs) for name, runner in runners.items()}
        size = next(len(array) for array in inputs if array.ndim)
        outputs = {name: found for name, (found, _) in answers.items()}
        rows = len(positions)
        before, after = (numbers.judged(at, *answers[name]) for at, name in enumerate(names))
        ours, theirs = before[: len(numbers.names)], after[: len(numbers.names)]
        kinds = kinds_of([output.shape for output in ours], output_loss, ends, size, are_floats(ours))
        agreement.see(ours, theirs, kinds, rows=rows)
        distance.see(before, after, rows, batch=size)
        if own is not None:
            own.see(ours, theirs, rows, size)
        if right is not None and source.labels is not None and _is_classifier(outputs["dense"], source):
            for name, found in outputs.items():
                right[name] += int((found[0][:rows].argmax(axis=1) == source.labels[positions]).sum())
        else:
            right = None
    accuracy = {} if right is None else {name: count / len(source) for name, count in right.items()}
    worst, notes = numbers.worst(distance), numbers.notes(distance)
    where, each = numbers.describe(worst), plain(agreement, numbers.names)
    measured = None if own is None else own.value
    return Quality(len(source), source.name, agreement.share, worst.distance, accuracy, where, notes, each, measured)


def _is_classifier(outputs: list[np.ndarray], source: Source) -> bool:
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] == len(source.class_names)


def batches_of(source: Source, *runners: Runner, step: int = BATCH) -> Iterator[tuple[np.ndarray, Any]]:
    """Positions of the samples of a batch, and the batch as the source gives it; filled up where its size is fixed."""
    fixed = next((runner.fixed_batch for runner in runners if runner.fixed_batch), None)
    step = fixed or step
    for number, batch in enumerate(source.batches(step, fixed=bool(fixed))):
        yield np.arange(number * step, min((number + 1) * step, len(source))), batch

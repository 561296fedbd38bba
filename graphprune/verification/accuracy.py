"""What a slim model is worth: how often it agrees with the dense one, and how often each is right.

Measured on the ONNX files that are shipped, in onnxruntime. Labels are used here alone, and only when their classes
are as many as the outputs of the model.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from graphprune.data import ImageSource
from graphprune.data.samples import Samples
from graphprune.verification.closeness import Agreement, are_classes
from graphprune.verification.model_runner import Runner, open_runner
from graphprune.verification.numbers import BATCH, Numbers

__all__ = ["Quality", "batches_of", "measure_quality"]


@dataclass(frozen=True)
class Quality:
    """Quality of a slim model beside the dense one.

    Attributes:
        images: how many were looked at.
        source: where they came from.
        agreement: share of images (or pixels) that both put into the same class; None for other networks.
        distance: squared distance of the outputs, relative to the spread of the dense model's; that of the worst part.
        accuracy: share of images that each model puts into the class of its label; empty without labels.
        worst: which part of which output that is, "" if there is one alone.
        not_compared: what could not be compared, in words.
    """

    images: int
    source: str
    agreement: float | None
    distance: float
    accuracy: dict[str, float] = field(default_factory=dict)
    worst: str = ""
    not_compared: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure_quality(
    dense: str | os.PathLike[str],
    slim: str | os.PathLike[str],
    source: ImageSource,
    *,
    threads: int = 1,
    output_loss: str = "auto",
) -> Quality:
    """Run both ONNX files on all images of `source` and compare their answers.

    Args:
        dense: the file to compare with.
        slim: the file in question.
        source: the images.
        threads: of onnxruntime.
        output_loss: what the outputs are, as in `CompressConfig`.

    Raises:
        VerificationError: there is nothing to compare on these images.
    """
    numbers = Numbers.of(dense, slim)
    names = ("dense", "slim")
    runners = {
        name: open_runner(file, threads=threads, watched=watched)
        for name, file, watched in zip(names, (dense, slim), numbers.watched, strict=True)
    }
    agreement, distance = Agreement(), numbers.distance()
    right: dict[str, int] | None = None if source.labels is None else dict.fromkeys(runners, 0)
    for positions, batch in batches_of(source, *runners.values(), step=numbers.step):
        answers = {name: runner.answer([batch]) for name, runner in runners.items()}
        outputs = {name: found for name, (found, _) in answers.items()}
        rows = len(positions)
        if are_classes(_float_shapes(outputs["dense"]), output_loss, len(batch)):
            agreement.see(outputs["dense"], outputs["slim"], rows=rows)
        before, after = (numbers.judged(at, *answers[name]) for at, name in enumerate(names))
        distance.see(before, after, rows, batch=len(batch))
        if right is not None and source.labels is not None and _is_classifier(outputs["dense"], source):
            for name, found in outputs.items():
                right[name] += int((found[0][:rows].argmax(axis=1) == source.labels[positions]).sum())
        else:
            right = None
    accuracy = {} if right is None else {name: count / len(source) for name, count in right.items()}
    worst, notes = numbers.worst(distance), numbers.notes(distance)
    return Quality(len(source), source.name, agreement.share, worst.distance, accuracy, numbers.describe(worst), notes)


def _float_shapes(outputs: list[np.ndarray]) -> list[tuple[int, ...]]:
    """Shapes of the floating-point ones; a class index beside the scores is none."""
    return [output.shape for output in outputs if np.issubdtype(output.dtype, np.floating)]


def _is_classifier(outputs: list[np.ndarray], source: ImageSource) -> bool:
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] == len(source.class_names)


def batches_of(source: ImageSource | Samples, *runners: Runner, step: int = BATCH) -> Iterator[tuple[np.ndarray, Any]]:
    """Positions of the samples of a batch, and the batch as the source gives it; filled up where its size is fixed."""
    fixed = next((runner.fixed_batch for runner in runners if runner.fixed_batch), None)
    step = fixed or step
    for number, batch in enumerate(source.batches(step, fixed=bool(fixed))):
        yield np.arange(number * step, min((number + 1) * step, len(source))), batch

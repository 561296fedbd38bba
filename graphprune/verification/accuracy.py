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
from graphprune.verification.closeness import Agreement, are_classes, without_common_faults
from graphprune.verification.model_runner import Runner, open_runner

__all__ = ["Distance", "Quality", "batches_of", "measure_quality"]

_BATCH = 64
_SAME = 1e-12  # share of the squares that rounding leaves of a spread of 0


@dataclass(frozen=True)
class Quality:
    """Quality of a slim model beside the dense one.

    Attributes:
        images: how many were looked at.
        source: where they came from.
        agreement: share of images (or pixels) that both put into the same class; None for other networks.
        distance: squared distance of the outputs, relative to the spread of the dense model's; 0 is the same.
        accuracy: share of images that each model puts into the class of its label; empty without labels.
    """

    images: int
    source: str
    agreement: float | None
    distance: float
    accuracy: dict[str, float] = field(default_factory=dict)

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
    """
    runners = {"dense": open_runner(dense, threads=threads), "slim": open_runner(slim, threads=threads)}
    agreement, distance = Agreement(), Distance()
    right: dict[str, int] | None = None if source.labels is None else dict.fromkeys(runners, 0)
    for positions, batch in batches_of(source, *runners.values()):
        answers = {name: runner.run([batch]) for name, runner in runners.items()}
        rows = len(positions)
        if are_classes(_float_shapes(answers["dense"]), output_loss):
            agreement.see(answers["dense"], answers["slim"], rows=rows)
        distance.see(answers["dense"], answers["slim"], rows)
        if right is not None and source.labels is not None and _is_classifier(answers["dense"], source):
            for name, outputs in answers.items():
                right[name] += int((outputs[0][:rows].argmax(axis=1) == source.labels[positions]).sum())
        else:
            right = None
    accuracy = {} if right is None else {name: count / len(source) for name, count in right.items()}
    return Quality(len(source), source.name, agreement.share, distance.value, accuracy)


def _float_shapes(outputs: list[np.ndarray]) -> list[tuple[int, ...]]:
    """Shapes of the floating-point ones; a class index beside the scores is none."""
    return [output.shape for output in outputs if np.issubdtype(output.dtype, np.floating)]


def _is_classifier(outputs: list[np.ndarray], source: ImageSource) -> bool:
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] == len(source.class_names)


def batches_of(source: ImageSource | Samples, *runners: Runner) -> Iterator[tuple[np.ndarray, Any]]:
    """Positions of the samples of a batch, and the batch as the source gives it; filled up where its size is fixed."""
    fixed = next((runner.fixed_batch for runner in runners if runner.fixed_batch), None)
    step = fixed or _BATCH
    for number, batch in enumerate(source.batches(step, fixed=bool(fixed))):
        yield np.arange(number * step, min((number + 1) * step, len(source))), batch


@dataclass
class Distance:
    """Sums for || a - b ||^2 / || a - mean(a) ||^2 of every output.

    Of outputs that are not floating-point (a class index, say), it is the share of elements that differ. A batch in
    which one model gives numbers where the other gives none (NaN, infinity) counts as wholly wrong.
    """

    sums: dict[int, np.ndarray] = field(default_factory=dict)

    def see(self, dense: list[np.ndarray], slim: list[np.ndarray], rows: int) -> None:
        """Take in the outputs of one batch, of which the first `rows` samples count."""
        for index, (a, b) in enumerate(zip(dense, slim, strict=True)):
            if a.shape != b.shape:
                continue
            x, y = (v[:rows] if v.ndim else v for v in (a, b))
            if np.issubdtype(a.dtype, np.floating):
                x, y = without_common_faults(x.astype(np.float64), y.astype(np.float64))
                same = np.isfinite(x) & np.isfinite(y)
                gap, x = ((x - y)[same] ** 2).sum(), x[same]
                square = (x**2).sum()
                seen = np.array([gap if same.all() else max(gap, square, 1.0), square, x.sum(), x.size])
            else:
                seen = np.array([(x != y).sum(), x.size, 0, x.size], dtype=np.float64)
            self.sums[index] = self.sums.get(index, np.zeros(4)) + seen

    @property
    def value(self) -> float:
        """The mean over the outputs; 0 where none could be compared."""
        return float(np.mean(self._each)) if self.sums else 0.0

    @property
    def worst(self) -> float:
        """That of the output that is furthest off; likewise."""
        return float(max(self._each, default=0.0))

    @property
    def _each(self) -> list[float]:
        found = []
        for gap, square, total, size in self.sums.values():
            spread = square - total**2 / max(size, 1)
            # Of numbers that are all the same, or of a single one, the size is the measure.
            found.append(gap / max(spread if spread > _SAME * square else square, 1e-12))
        return found

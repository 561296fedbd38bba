"""What the measured latency of whole networks does as they get smaller, beyond the sum of their segments."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import theilslopes

from graphprune.latency.curve import Curve, Point

__all__ = ["Taken", "fit_trend", "merged"]

#: By kind of segment, lengths and seconds of each segment in one allocation.
Taken = Mapping[str, Sequence[tuple[Point, float]]]

_FOLDS = 8
_POWERS = (0.7, 1.5)  # beyond these it is noise


def merged(taken: Sequence[Taken]) -> dict[str, list[tuple[Point, float]]]:
    """The measurements of all allocations, by kind of segment."""
    samples: dict[str, list[tuple[Point, float]]] = {}
    for allocation in taken:
        for kind, found in allocation.items():
            samples.setdefault(kind, []).extend(found)
    return samples


def fit_trend(taken: Sequence[Taken], block: int, dense_seconds: float) -> tuple[float, float]:
    """(a, b) in  log(T / D) = a + b log(S / D):  T measured, S summed, D of the dense network.

    The sum for an allocation comes from the measurements of others: those of its own would hide what is looked for.
    The line is the one of median slope, which single disturbed measurements do not move.

    Args:
        taken: measurements of each allocation, which add up to the measured time of the whole file.
        block: channels in a block of the kernels.
        dense_seconds: measured latency of the dense file.
    """
    summed, measured = np.zeros(len(taken)), np.zeros(len(taken))
    folds = min(_FOLDS, len(taken))
    for fold in range(folds):
        others = merged([allocation for index, allocation in enumerate(taken) if index % folds != fold])
        curves = {kind: Curve(samples, block) for kind, samples in others.items()}
        for index in range(fold, len(taken), folds):
            for kind, found in taken[index].items():
                measured[index] += sum(seconds for _, seconds in found)
                summed[index] += sum(curves[kind].at(tuple(point)) for point, _ in found if kind in curves)
    usable = (summed > 0) & (measured > 0)
    x, y = np.log(summed[usable] / dense_seconds), np.log(measured[usable] / dense_seconds)
    if len(np.unique(x)) < 3:
        return 0.0, 1.0
    slope = theilslopes(y - x, x)[0]
    power = float(np.clip(1 + slope, *_POWERS))
    return float(np.median(y - power * x)), power

"""What the measured latency of whole networks does as they get smaller, beyond the sum of their segments."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import theilslopes

from graphprune.latency.curve import Curve, Point

__all__ = ["Taken", "fit_trend", "merged"]

#: By kind of segment, lengths and seconds of each segment in one allocation.
Taken = Mapping[str, Sequence[tuple[Point, float]]]

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

    The line is the one of median slope, which single disturbed measurements do not move. It is fitted to sums that know
    the allocations they are for, and so is a little too flat; left out, they would make it too steep.

    Args:
        taken: measurements of each allocation, which add up to the measured time of the whole file.
        block: channels in a block of the kernels.
        dense_seconds: measured latency of the dense file.
    """
    curves = {kind: Curve(samples, block) for kind, samples in merged(taken).items()}
    measured = np.array([sum(t for found in one.values() for _, t in found) for one in taken])
    summed = np.array(
        [sum(curves[kind].at(point) for kind, found in one.items() for point, _ in found) for one in taken]
    )
    usable = (summed > 0) & (measured > 0)
    x, y = np.log(summed[usable] / dense_seconds), np.log(measured[usable] / dense_seconds)
    if len(np.unique(x)) < 3:
        return 0.0, 1.0
    power = float(np.clip(1 + theilslopes(y - x, x)[0], *_POWERS))
    return float(np.median(y - power * x)), power

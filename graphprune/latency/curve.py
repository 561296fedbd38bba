"""Time of one kind of segment as a function of the lengths that it depends on, from scattered measurements.

    t(n) = (c0 + c1 n_in + c2 p_out + c3 n_in p_out) * r(n)

The first factor is fitted with non-negative coefficients, p being n rounded up to the kernels' block; the second is
the ratio of measured to fitted times, averaged over the nearest measurements, so that where something was measured the
measurement decides. Lengths that kernels can read in fours, lengths that they cannot, and lengths of zero (a branch
that is gone) are kept apart: time jumps between them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import nnls

__all__ = ["Curve"]

Point = tuple[float, ...]

_NEAR = 0.005  # squared distance below which a measurement counts like one at the place itself
_FLOOR = 1e-9  # seconds


class Curve:
    """Measurements of one kind of segment, and what lies between them.

    Args:
        samples: lengths and seconds of every measurement.
        block: channels in a block of the kernels.
    """

    def __init__(self, samples: Sequence[tuple[Point, float]], block: int) -> None:
        self.samples = [(tuple(float(n) for n in point), float(seconds)) for point, seconds in samples]
        self.block = block
        by_point: dict[Point, list[float]] = {}
        for point, seconds in self.samples:
            by_point.setdefault(point, []).append(seconds)
        self._regimes: dict[tuple[str, ...], _Regime] = {}
        for regime in sorted({_regime(point) for point in by_point}):
            inside = {p: (float(np.median(t)), len(t)) for p, t in by_point.items() if _regime(p) == regime}
            self._regimes[regime] = _Regime(inside, block)
        self.at = lru_cache(maxsize=None)(self._at)

    def _at(self, point: Point) -> float:
        """Seconds at these lengths."""
        regime = _regime(point)
        if regime in self._regimes:
            return self._regimes[regime].at(point)
        if "gone" in regime or not self._regimes:
            return 0.0  # nothing was ever seen to remain
        # Lengths of a sort that was not measured: as if they were of the sort that was measured most.
        return max(self._regimes.values(), key=lambda found: len(found.points)).at(point)


def _regime(point: Point) -> tuple[str, ...]:
    return tuple("gone" if n < 0.5 else "even" if n % 4 == 0 else "odd" for n in point)


class _Regime:
    def __init__(self, measured: dict[Point, tuple[float, int]], block: int) -> None:
        self.block = block
        self.points = np.array(sorted(measured), dtype=np.float64).reshape(len(measured), -1)
        self.values = np.array([measured[tuple(p)][0] for p in self.points]).clip(_FLOOR)
        self.counts = np.array([measured[tuple(p)][1] for p in self.points])
        weights = 1.0 / self.values  # relative errors count
        self.coefficients, _ = nnls(self._features(self.points) * weights[:, None], np.ones(len(weights)))
        self.ratios = self.values / self._fit(self.points)

    def _features(self, points: np.ndarray) -> np.ndarray:
        padded = np.ceil(points / self.block) * self.block
        columns = [np.ones(len(points))]
        if points.shape[1] >= 1:
            columns += [points[:, 0]] if points.shape[1] > 1 else [padded[:, 0]]
        if points.shape[1] >= 2:
            columns += [padded[:, 1], points[:, 0] * padded[:, 1]]
        return np.stack(columns, axis=1)

    def _fit(self, points: np.ndarray) -> np.ndarray:
        return (self._features(points) @ self.coefficients).clip(_FLOOR)

    def _place(self, points: np.ndarray) -> np.ndarray:
        """Where lengths lie: twice as many channels are about as far in a wide layer as in a narrow one."""
        return np.log2(1 + points / self.block)

    def at(self, point: Point) -> float:
        asked = np.asarray(point, dtype=np.float64).reshape(1, -1)
        distance = ((self._place(self.points) - self._place(asked)) ** 2).sum(axis=1)
        weights = self.counts / (_NEAR + distance) ** 2.5
        ratio = float(np.exp(np.average(np.log(self.ratios), weights=weights)))
        return float(self._fit(asked)[0]) * ratio

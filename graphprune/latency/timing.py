"""Timing whole files against the dense one, in turns, so that a drift of the machine meets both alike."""

from collections.abc import Mapping, Sequence

import numpy as np

from graphprune.latency.target import LatencyTarget
from graphprune.runtime.contenders import Contender, interference
from graphprune.runtime.onnx_session import OnnxSource

__all__ = ["Reference"]

_WARM_UP = 0.05
_STABLE = 0.007  # standard error of the ratio at which it is believed
_ROUNDS = (5, 60)


class Reference:
    """The dense file, kept open, which others are timed against."""

    def __init__(
        self,
        source: OnnxSource,
        target: LatencyTarget,
        shapes: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.target = target
        self._shapes = shapes
        self._seed = seed
        self._dense = self._open("dense", source)
        self._dense.warm_up()

    def _open(self, name: str, source: OnnxSource) -> Contender:
        opened = Contender.open(name, source, self.target.threads, self.target.provider)
        return opened.feed(self.target.batch, None, self._shapes, self._seed)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input."""
        return self._dense.shapes

    @property
    def interference(self) -> float | None:
        """Share of the dense file's turns so far in which the processor did other work; None where it is not known."""
        if self.target.threads > 1 or not self._dense.wall_seconds:
            return None
        return interference([self._dense])

    def dense_ms(self) -> float:
        """Median latency of the dense file in milliseconds."""
        self._dense.times = []
        for _ in range(2 * _ROUNDS[0]):
            self._dense.take_turn()
        return float(np.median([time for turn in self._dense.times for time in turn]) * 1e3)

    def share(self, source: OnnxSource, max_seconds: float = 2.0) -> tuple[float, float]:
        """Latency of a file as a share of the dense one's, and the dense one's in milliseconds.

        Rounds go on until the ratio is stable to 0.7 %, or the time is over.
        """
        other = self._open("slim", source)
        other.warm_up(_WARM_UP)
        self._dense.times = []
        for rounds in range(1, _ROUNDS[1] + 1):
            for contender in (self._dense, other) if rounds % 2 else (other, self._dense):
                contender.take_turn()
            if rounds >= _ROUNDS[0]:
                ratios = np.array([_quick(b) / _quick(a) for a, b in zip(self._dense.times, other.times, strict=True)])
                error = 1.25 * ratios.std(ddof=1) / np.sqrt(rounds) / np.median(ratios)
                if error < _STABLE or self._dense.seconds() + other.seconds() > max_seconds:
                    break
        return float(np.median(ratios)), float(np.median([_quick(a) for a in self._dense.times]) * 1e3)


def _quick(times: Sequence[float]) -> float:
    """The time of a run in a turn: interruptions make runs longer, never shorter."""
    return min(times)

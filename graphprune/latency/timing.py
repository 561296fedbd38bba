"""Timing whole files against the dense one, in turns, so that a drift of the machine meets both alike."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.contenders import Contender, interference
from graphprune.latency.target import LatencyTarget
from graphprune.onnx_session import OnnxSource

__all__ = ["Reference"]

logger = logging.getLogger("graphprune")

_WARM_UP = 0.05
_STABLE = 0.007  # standard error of the ratio at which it is believed
_ROUNDS = (5, 60)
_STEADY = 0.04  # change of a share that was measured before, up to which nothing is in the way
_PAUSES = (1.0, 4.0, 10.0)  # seconds


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
        self._known: _Known | None = None

    def watch(self, source: OnnxSource, share: float) -> None:
        """Measure another file beside all later ones: its share of the dense latency is known and should not change.

        Other work on the machine, or a neighbour's on the same processor, slows a large file and a small one in
        unequal measure: what one evicts from the caches the other does not need. Seen: 4.06x and 8.4x for shapes that
        are 5.7x and 4.9x as fast as the dense network, while single runs looked as regular as ever.

        Args:
            source: a file about as large as those to come.
            share: what was measured of it.
        """
        self._known = _Known(self._open("known", source), share)
        self._known.contender.warm_up(_WARM_UP)

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

        Rounds go on until the ratio is stable to 0.7 %, or the time is over. Where the file of `watch` has changed
        meanwhile, all is measured again after a pause; if that does not help, the share is corrected by its change.
        """
        other = self._open("slim", source)
        other.warm_up(_WARM_UP)
        tries = [self._timed(other, max_seconds)]
        for pause in _PAUSES:
            if tries[-1].is_steady:
                break
            time.sleep(pause)
            tries.append(self._timed(other, max_seconds))
        best = min(tries, key=lambda timing: abs(math.log(timing.change)))
        if best.is_steady:
            return best.share, best.dense_ms
        logger.warning(
            "latency: other work is in the way: shapes that took %.3f of the dense time take %.3f of it now; what is "
            "measured is corrected for that",
            self._known.share if self._known else math.nan,
            self._known.share * best.change if self._known else math.nan,
        )
        return best.share / best.change, best.dense_ms

    def _timed(self, other: Contender, max_seconds: float) -> "_Timing":
        watched = [] if self._known is None else [self._known.contender]
        contenders = [self._dense, *watched, other]
        for contender in contenders:
            contender.times = []
        ratios = np.empty(0)
        for rounds in range(1, _ROUNDS[1] + 1):
            for contender in contenders if rounds % 2 else reversed(contenders):
                contender.take_turn()
            if rounds >= _ROUNDS[0]:
                ratios = self._ratios(other)
                error = 1.25 * ratios.std(ddof=1) / np.sqrt(rounds) / np.median(ratios)
                if error < _STABLE or sum(contender.seconds() for contender in contenders) > max_seconds:
                    break
        change = float(np.median(self._ratios(self._known.contender))) / self._known.share if self._known else 1.0
        dense_ms = float(np.median([_quick(turn) for turn in self._dense.times]) * 1e3)
        return _Timing(float(np.median(ratios)), dense_ms, change)

    def _ratios(self, other: Contender) -> np.ndarray:
        """Its time as a share of the dense one's, round by round."""
        return np.array([_quick(b) / _quick(a) for a, b in zip(self._dense.times, other.times, strict=True)])


@dataclass(frozen=True)
class _Known:
    """A file whose share of the dense latency is known."""

    contender: Contender
    share: float


@dataclass(frozen=True)
class _Timing:
    """What was measured of a file, and by what factor the share of the known one differs from before."""

    share: float
    dense_ms: float
    change: float

    @property
    def is_steady(self) -> bool:
        return abs(self.change - 1) <= _STEADY


def _quick(times: Sequence[float]) -> float:
    """The time of a run in a turn: interruptions make runs longer, never shorter."""
    return min(times)

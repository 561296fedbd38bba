"""The latency model of a network: a sum over segments, each measured at the widths that matter.

    T(kept) = D (S / D)^b e^a        S = sum over segments s of  t_kind(s)( lengths of s ),  D that of the dense network

Built by cutting the exported file to a few dozen random allocations and timing every kernel inside the whole network,
where caches, fusions and changes of layout are what they will be; a cut needs no training, because latency does not
depend on weights. The kernels of each run are scaled to add up to the measured time of the whole file. Further
allocations, which nothing is fitted to, say how far predictions are off.

The trend (a, b) is what a sum cannot know: in a small network the weights of all layers stay in the caches from run to
run, so that each layer is quicker there than at the same lengths in a large one. It leaves larger sums larger, so that
a limit of the latency is one of the sum.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.latency.curve import Curve, Point
from graphprune.latency.segments import Segment, Segments
from graphprune.latency.target import LatencyTarget
from graphprune.passes.errors import ModelLoadError
from graphprune.widths import Axis, set_widths

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["LatencyModel", "structure_digest"]

logger = logging.getLogger("graphprune")

_SCHEMA = 2


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of a network with any groups removed.

    Attributes:
        target: what it was measured for.
        block: channels in a block of the kernels.
        segments: pieces of the network.
        samples: by kind of segment, lengths and seconds of every measurement.
        dense_ms: measured latency of the dense file.
        trend: (a, b) of the formula above.
        errors: of each allocation that nothing was fitted to, the predicted latency over the measured one, minus 1.
        seconds: how long the measurement took.
        structure: digest of the network's shape, which a model fits to.
    """

    target: LatencyTarget
    block: int
    segments: tuple[Segment, ...]
    samples: Mapping[str, Sequence[tuple[Point, float]]]
    dense_ms: float
    trend: tuple[float, float] = (0.0, 1.0)
    errors: tuple[float, ...] = ()
    seconds: float = 0.0
    structure: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Time of each kind of segment."""
        return {kind: Curve(samples, self.block) for kind, samples in self.samples.items()}

    def summed(self, widths: np.ndarray) -> float:
        """S of the formula above, in seconds, when each set keeps so many groups; (n_sets,)."""
        return sum(self.curves[s.kind].at(tuple(axis.length(widths) for axis in s.axes)) for s in self.segments)

    @property
    def dense_seconds(self) -> float:
        """What predicted shares refer to: the measured latency of the dense file."""
        return self.dense_ms / 1e3

    def share(self, graph: "ChannelGraph", kept: np.ndarray) -> float:
        """Predicted latency as a share of the dense network's."""
        start, power = self.trend
        return float(np.exp(start) * (self.summed(set_widths(graph, kept)) / self.dense_seconds) ** power)

    def summed_share(self, share: float) -> float:
        """The sum, as a share of the dense latency, at which a network has this predicted share of it."""
        start, power = self.trend
        return float((share * np.exp(-start)) ** (1 / power))

    @property
    def error(self) -> dict[str, float]:
        """Mean and largest error of predictions, as shares of the measured latency."""
        found = np.abs(np.asarray(self.errors or (np.nan,)))
        return {"mean": float(found.mean()), "max": float(found.max())}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        kinds = sorted(self.samples)
        number = {kind: index for index, kind in enumerate(kinds)}
        return {
            "schema": _SCHEMA,
            "target": self.target.to_dict(),
            "facts": dict(self.facts),
            "block": self.block,
            "structure": self.structure,
            "dense_ms": self.dense_ms,
            "trend": list(self.trend),
            "errors": list(self.errors),
            "seconds": self.seconds,
            "kinds": [{"kind": kind, "samples": [[list(p), t] for p, t in self.samples[kind]]} for kind in kinds],
            "segments": [[s.name, number[s.kind], [axis.to_list() for axis in s.axes]] for s in self.segments],
        }

    @classmethod
    def from_dict(cls, data: Any) -> "LatencyModel":
        """The inverse of `to_dict`.

        Raises:
            ModelLoadError: the data is of another version, or malformed.
        """
        try:
            if data["schema"] != _SCHEMA:
                raise ModelLoadError(f"latency model of schema {data['schema']}, this version reads {_SCHEMA}")
            kinds = [entry["kind"] for entry in data["kinds"]]
            return cls(
                target=LatencyTarget(**data["target"]),
                block=int(data["block"]),
                segments=tuple(
                    Segment(name, kinds[kind], tuple(_axis(axis) for axis in axes))
                    for name, kind, axes in data["segments"]
                ),
                samples={
                    entry["kind"]: [(tuple(point), float(t)) for point, t in entry["samples"]]
                    for entry in data["kinds"]
                },
                dense_ms=float(data["dense_ms"]),
                trend=_trend(data["trend"]),
                errors=tuple(float(error) for error in data["errors"]),
                seconds=float(data["seconds"]),
                structure=str(data["structure"]),
                facts=dict(data["facts"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelLoadError(f"latency model is malformed: {error!r}") from error


def _trend(data: Any) -> tuple[float, float]:
    start, power = data
    return float(start), float(power)


def _axis(data: Any) -> Axis:
    fixed, terms = data
    return Axis(float(fixed), tuple((int(index), float(each)) for index, each in terms))


def structure_digest(segments: Segments, graph: "ChannelGraph", shapes: Mapping[str, Sequence[int]]) -> str:
    """What tells networks apart whose latencies differ: all but their weights."""
    described = [
        [[s.kind, [axis.to_list() for axis in s.axes]] for s in segments.items],
        [len(s.groups) for s in graph.sets],
        sorted((name, list(shape)) for name, shape in shapes.items()),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

"""Measured latencies of planned shapes, and the way from a predicted to a measured budget.

Predictions are off by a few percent; an allocation that is to be twice as fast is cut, measured, and made anew with a
budget that is corrected by what was found, until the measured latency is where it should be. What was measured is
remembered, and written down where a run has to get to the same result when it is killed and resumed.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.formats.files import atomic_write_json
from graphprune.latency.build import latency_model
from graphprune.latency.cut import cut_file
from graphprune.latency.model import LatencyModel
from graphprune.latency.target import LatencyTarget
from graphprune.latency.timing import Reference
from graphprune.passes.errors import BudgetError, ModelLoadError, UsageError
from graphprune.runtime.onnx_inputs import input_specs
from graphprune.runtime.onnx_session import open_session
from graphprune.widths import set_widths

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["TOLERANCE", "Reached", "Stopwatch", "stopwatch"]

logger = logging.getLogger("graphprune")

_DENSE = "dense_ms"
_ROUNDS = 6
_ENOUGH = (0.98, 1.0)  # measured latency over the one asked for
_AIM = 0.99
_STEP = (0.7, 1.3)  # of the correction in one round
_SECONDS = 3.0
TOLERANCE = 0.03  # of a latency that is asked for


@dataclass(frozen=True)
class Reached:
    """An allocation, and what was measured of it.

    Attributes:
        removed: (n_groups,) the groups that go.
        share: its measured latency, as a share of the dense network's.
        predicted: what the model says.
    """

    removed: np.ndarray
    share: float
    predicted: float

    def require(self, share: float) -> None:
        """Raises: BudgetError: it is clearly slower than `share` of the dense network's latency."""
        if self.share > share * (1 + TOLERANCE):
            raise BudgetError(
                f"a speed-up of {1 / share:.3g} was not reached: the best allocation found measures "
                f"{1 / self.share:.3g}; ask for less, or let more go (freeze, min_channels)"
            )


class Stopwatch:
    """Measures allocations of one network.

    Attributes:
        model: predicts latencies.
        correction: what a budget in measured latency is multiplied with to get one in predicted latency.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        dense: Path,
        target: LatencyTarget,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        journal: Path | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> None:
        """Measure the model, or take it from the cache or the journal.

        Args:
            graph: channel groups.
            dense: the ONNX file exported from the model.
            target: how the file will be run.
            shapes: sizes of inputs that the file leaves open.
            journal: a file that holds the model and all measurements.
            resume: take those of the journal.
            seed: of the inputs and of the allocations that the model is made from.

        Raises:
            UsageError: the journal is of another target, or of another machine.
            ModelLoadError: the journal is missing or malformed.
        """
        self.graph = graph
        self._dense = dense
        self._shapes = shapes
        self._seed = seed
        self._journal = journal
        self._reference: Reference | None = None
        self.target = target
        self.measured: dict[str, float] = {}
        if journal is not None and resume:
            self.model = self._recall(journal)
        else:
            self.model = latency_model(graph, dense, target, shapes=shapes, seed=seed)
            self._note()
        self.correction = 1.0

    def _recall(self, journal: Path) -> LatencyModel:
        try:
            data = json.loads(journal.read_text(encoding="utf-8"))
            measured = {str(key): float(share) for key, share in data["measured"].items()}
            model = LatencyModel.from_dict(data["model"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{journal}: not readable, so the run cannot be resumed; start afresh") from error
        if model.target != self.target:
            raise UsageError(
                f"cannot resume: latency was measured with {model.target.threads} threads at batch "
                f"{model.target.batch}, and is now to be with {self.target.threads} at {self.target.batch}"
            )
        here = self.target.key()
        if other := [name for name in here if name in model.facts and model.facts[name] != here[name]]:
            raise UsageError(
                f"cannot resume: latency was measured on another machine ({other[0]} was {model.facts[other[0]]} and "
                f"is {here[other[0]]} here); go on where the run began, or start afresh"
            )
        self.measured = measured
        return model

    def note_in(self, journal: Path) -> None:
        """Write all measurements, those made so far and those to come, into this file."""
        self._journal = journal
        self._note()

    def _note(self) -> None:
        if self._journal is not None:
            atomic_write_json(self._journal, {"measured": self.measured, "model": self.model.to_dict()})

    @property
    def reference(self) -> Reference:
        """The dense file, open."""
        if self._reference is None:
            self._reference = Reference(self._dense, self.target, self._shapes, self._seed)
        return self._reference

    def share_of(self, speedup: float | None, latency_ms: float | None) -> float:
        """The share of the dense latency that both budgets leave; 1 or more where the dense network is fast enough."""
        shares = [1 / speedup] if speedup is not None else []
        if latency_ms is not None:
            shares.append(latency_ms / self.dense_ms())
        return min(shares)

    def dense_ms(self) -> float:
        """Latency of the dense network, measured once."""
        if _DENSE not in self.measured:
            self.measured[_DENSE] = self.reference.dense_ms()
            self._note()
        return self.measured[_DENSE]

    def predicted(self, kept: np.ndarray) -> float:
        """Predicted latency as a share of the dense network's."""
        return self.model.share(self.graph, kept)

    def share(self, kept: np.ndarray) -> float:
        """Measured latency of the network with the groups of `kept`, as a share of the dense network's."""
        widths = set_widths(self.graph, kept).tolist()
        key = hashlib.sha256(json.dumps(widths).encode()).hexdigest()[:24]
        if key not in self.measured:
            file = cut_file(self.graph, self._dense, kept)
            self.measured[key] = self.reference.share(file, _SECONDS)[0]
            self._note()
        return self.measured[key]

    def reach(self, share: float, allocate: Callable[[float], np.ndarray]) -> Reached:
        """An allocation whose measured latency is at most `share` of the dense one's, and hardly less.

        Args:
            share: the latency to reach.
            allocate: the groups to remove for a budget in predicted latency.

        Raises:
            BudgetError: not even the first budget can be reached.
        """
        found: list[Reached] = []
        for _ in range(_ROUNDS):
            try:
                removed = allocate(share * self.correction)
            except BudgetError as error:
                if not found:
                    raise BudgetError(f"a speed-up of {1 / share:.3g} was not reached: {error}") from error
                break
            kept = ~removed
            found.append(Reached(removed, self.share(kept), self.predicted(kept)))
            ratio = found[-1].share / share
            logger.debug("predicted %.4f, measured %.4f, asked %.4f", found[-1].predicted, found[-1].share, share)
            if _ENOUGH[0] <= ratio <= _ENOUGH[1]:
                break
            if any(np.array_equal(removed, earlier.removed) for earlier in found[:-1]) and ratio <= 1:
                break  # the next wider step is too slow
            self.correction *= float(np.clip(_AIM / ratio, *_STEP))
        inside = [reached for reached in found if reached.share <= share]
        best = max(inside, key=lambda r: r.share) if inside else min(found, key=lambda r: r.share)
        self.correction = best.predicted / best.share
        logger.info(
            "latency: planned %.3fx, measured %.3fx, %.3fx asked for",
            *(1 / best.predicted, 1 / best.share, 1 / share),
        )
        return best

    def to_dict(self) -> dict[str, Any]:
        """What a report should say about it."""
        return {
            "target": self.target.to_dict(),
            "dense_ms": self.model.dense_ms,
            "prediction_error": self.model.error,
            "allocations_measured": len(self.measured),
            "model_seconds": self.model.seconds,
        }


@contextmanager
def stopwatch(
    graph: "ChannelGraph", target: LatencyTarget, *, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> Iterator[Stopwatch]:
    """A stopwatch for a traced model of which no ONNX file has been written yet.

    Raises:
        UnsupportedModelError: the model cannot be written as ONNX.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "dense.onnx"
        own = _write(graph, path)
        yield Stopwatch(graph, path, target, shapes=shapes or own, seed=seed)


def _write(graph: "ChannelGraph", path: Path) -> dict[str, tuple[int, ...]]:
    """Write the file of a graph, and return the sizes that it was traced at, by input; the batch is left open."""
    front = graph.front_end
    if hasattr(front, "module"):
        from graphprune.formats.export import export_onnx

        examples = front.module.example_inputs
        export_onnx(front.module, examples, path)
        specs = input_specs(open_session(path, optimize=False), path.name)
        return {spec.name: (0, *x.shape[1:]) for spec, x in zip(specs, examples, strict=True) if x.ndim}
    from graphprune.formats.onnx_files import write

    write(front.model, path)
    return {}

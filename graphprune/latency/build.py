"""Measuring a latency model: random allocations of the exported file, timed kernel by kernel and as a whole."""

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.latency import cache
from graphprune.latency.curve import Point
from graphprune.latency.cut import cut_file
from graphprune.latency.kernels import kernel_times
from graphprune.latency.model import LatencyModel, structure_digest
from graphprune.latency.sampling import allocations, draw, lattice_of
from graphprune.latency.segments import Segments, read_segments
from graphprune.latency.target import LatencyTarget
from graphprune.latency.timing import Reference
from graphprune.latency.trend import Taken, fit_trend, merged
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import free_sizes
from graphprune.passes.onnx.model import load_model as load_onnx
from graphprune.runtime.benchmark import BUSY
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_inputs import input_specs, random_inputs
from graphprune.runtime.onnx_session import open_session
from graphprune.widths import set_widths

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["latency_model"]

logger = logging.getLogger("graphprune")

_FITTED, _CHECKED = 40, 6
_KERNEL_SECONDS, _KERNEL_RUNS = 0.12, 4
_SHARE_SECONDS = 1.0
_LEAST = 0.3  # of a kernel's time that is believed


def latency_model(
    graph: "ChannelGraph",
    dense: str | os.PathLike[str],
    target: LatencyTarget,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    use_cache: bool = True,
) -> LatencyModel:
    """The latency model of a network, from the cache or measured.

    Args:
        graph: channel groups of the model, or of the file itself.
        dense: the ONNX file exported from it.
        target: how the file will be run.
        shapes: sizes of inputs that the file leaves open, beyond the batch.
        seed: of the allocations that are measured.
        use_cache: look for an earlier measurement, and keep this one.

    Raises:
        ModelLoadError: the file cannot be read or run.
    """
    file_graph = graph
    if hasattr(graph.front_end, "module"):
        onnx_model = load_onnx(dense)
        file_graph = trace_onnx(
            onnx_model, sizes=free_sizes(onnx_model, {k: tuple(v) for k, v in (shapes or {}).items()})
        )
    segments = read_segments(file_graph, graph)
    reference = Reference(dense, target, shapes, seed)
    structure = structure_digest(segments, graph, reference.shapes)
    found = cache.load(structure, target) if use_cache else None
    if found is not None:
        logger.info("latency: measured before on this machine (mean error %.1f %%)", 100 * found.error["mean"])
        return found
    built = _Builder(graph, Path(dense), segments, reference, seed).build(structure)
    if (busy := reference.interference) is not None and busy > BUSY:
        logger.warning(
            "other work took %.0f %% of the processor while latencies were measured: predictions may be off, and are "
            "measured again the next time",
            100 * busy,
        )
    elif use_cache:
        cache.store(built)
    return built


class _Builder:
    def __init__(self, graph: "ChannelGraph", dense: Path, segments: Segments, reference: Reference, seed: int) -> None:
        self.graph = graph
        self.dense = dense
        self.segments = segments
        self.reference = reference
        self.target = reference.target
        self.seed = seed
        self.facts = self.target.key()
        self.block = machine_facts().conv_block
        session = open_session(dense)
        self.feeds = random_inputs(input_specs(session), reference.shapes, seed)

    def build(self, structure: str) -> LatencyModel:
        start = time.perf_counter()
        drawn = allocations(self.graph, self.segments, self.block, self.seed)
        runs, dense_ms = [], []
        for kept in itertools.islice(drawn, _FITTED):
            file = cut_file(self.graph, self.dense, kept)
            share, milliseconds = self.reference.share(file, _SHARE_SECONDS)
            kernels = kernel_times(file, self.feeds, self.target, min_seconds=_KERNEL_SECONDS, min_runs=_KERNEL_RUNS)
            runs.append((kept, share, kernels))
            dense_ms.append(milliseconds)
        unit = float(np.median(dense_ms)) / 1e3
        taken = [self._taken(kept, share * unit, kernels) for kept, share, kernels in runs]
        model = LatencyModel(
            target=self.target,
            block=self.block,
            segments=self.segments.items,
            samples=merged(taken),
            dense_ms=unit * 1e3,
            trend=fit_trend(taken, self.block, unit),
            structure=structure,
            facts=self.facts,
        )
        return self._checked(model, start)

    def _taken(self, kept: np.ndarray, whole: float, kernels: list[tuple[str, float]]) -> Taken:
        """The times of one allocation, made to add up to that of the whole file."""
        plain = np.array([seconds for _, seconds in kernels])
        # What a kernel costs beyond itself; or what noting its time costs, if that is more.
        beyond = (whole - plain.sum()) / max(1, len(plain))
        adjusted = np.maximum(plain + beyond, _LEAST * plain)
        adjusted *= whole / adjusted.sum()
        named = [(name, float(t)) for (name, _), t in zip(kernels, adjusted, strict=True)]
        times = self.segments.times(named)
        widths = set_widths(self.graph, kept)
        taken: dict[str, list[tuple[Point, float]]] = {}
        for segment, seconds in zip(self.segments.items, times, strict=True):
            lengths = tuple(axis.length(widths) for axis in segment.axes)
            taken.setdefault(segment.kind, []).append((lengths, float(seconds)))
        return taken

    def _checked(self, model: LatencyModel, start: float) -> LatencyModel:
        rng = np.random.default_rng(self.seed + 1)
        choices = [lattice_of(s, self.block) for s in self.graph.sets]
        errors = []
        for _ in range(_CHECKED):
            kept = draw(self.graph, choices, rng)
            share, _ = self.reference.share(cut_file(self.graph, self.dense, kept), _SHARE_SECONDS)
            errors.append(model.share(self.graph, kept) / share - 1)
        seconds = time.perf_counter() - start
        logger.info(
            "latency: %d allocations measured in %.0f s; dense %.3g ms; predictions of %d others are off by %.1f %% in "
            "the mean, %.1f %% at most",
            *(_FITTED, seconds, model.dense_ms, _CHECKED, 100 * np.abs(errors).mean(), 100 * np.abs(errors).max()),
        )
        return dataclasses.replace(model, errors=tuple(errors), seconds=round(seconds, 2))

"""Times of the kernels that onnxruntime runs for a file, by its own profiler."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from graphprune.latency.target import LatencyTarget
from graphprune.passes.errors import ModelLoadError
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, OnnxSource, one_line, open_session

__all__ = ["kernel_times"]

_SUFFIX = "_kernel_time"
_WITH_BODIES = frozenset({"If", "Loop", "Scan"})
_TRUNCATED = 0.5  # the profiler cuts microseconds off


def kernel_times(
    model: OnnxSource, feeds: Mapping[str, np.ndarray], target: LatencyTarget, *, min_seconds: float, min_runs: int
) -> list[tuple[str, float]]:
    """(name, seconds) of every kernel of one run, in their order, in calm runs.

    Args:
        model: the file, or its content.
        feeds: inputs by name.
        target: how it is run.
        min_seconds: timed seconds at least.
        min_runs: runs at least.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            model, threads=target.threads, provider=target.provider, profile=str(Path(folder) / "run")
        )
        return _calm(_events(session, feeds, min_seconds, min_runs))


def _events(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], min_seconds: float, min_runs: int
) -> list[dict]:
    start, runs = time.perf_counter(), 0
    while runs < min_runs + 1 or time.perf_counter() - start < min_seconds:
        try:
            session.run(None, dict(feeds))
        except RUNTIME_ERRORS as error:
            raise ModelLoadError(f"onnxruntime cannot run the model: {one_line(error)}") from error
        runs += 1
    return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def _calm(events: list[dict]) -> list[tuple[str, float]]:
    """The first run is left out: it warms up."""
    seen: dict[str, list[float]] = {}
    for event in _outermost([e for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)]):
        key = f"{event['args'].get('node_index', '')}\0{event['name'].removesuffix(_SUFFIX)}"
        seen.setdefault(key, []).append(float(event["dur"]) + _TRUNCATED)
    return [(key.partition("\0")[2], float(np.percentile(found[1:] or found, 30)) / 1e6) for key, found in seen.items()]


def _outermost(events: list[dict]) -> list[dict]:
    """Without the kernels in bodies of If, Loop and Scan, whose time is in that of the node already.

    Kernels are noted as they end, so one that is noted later and began no later holds all that lies between.
    """
    found: list[dict] = []
    begun = float("inf")  # when the kernel of a body's node began that is being walked through, from its end
    for event in reversed(events):
        if event["ts"] >= begun:
            continue
        begun = event["ts"] if event["args"].get("op_name") in _WITH_BODIES else float("inf")
        found.append(event)
    return found[::-1]

"""Where the time of an ONNX file goes: onnxruntime's own profiler, its kernels traced back to the layers of the file.

The profiler notes the time of every kernel, in whole microseconds; the median over runs is taken for each. Noting
costs time itself, so the sum is above the latency that `benchmark` measures; the shares are what counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphprune.latency.kernels import kernel_times
from graphprune.latency.target import LatencyTarget
from graphprune.runtime.machine import Machine, machine_facts
from graphprune.runtime.onnx_inputs import batch_of, input_shapes, input_specs, random_inputs
from graphprune.runtime.onnx_session import CPU, OnnxSource, label_of, open_session
from graphprune.runtime.optimized import Finding, optimized_graph, with_names

__all__ = ["KernelShare", "ProfileReport", "profile"]

_RUNS = 10


@dataclass(frozen=True)
class KernelShare:
    """One kernel of a run.

    Attributes:
        name: Its name in the optimized graph.
        op_type: Its operator, with what was fused into it: "Conv+Add+Relu".
        layer: The layer of the file that it belongs to.
        layout: "blocked", "int8" or "plain".
        ms: Median time of a run.
        share: Of the sum over all kernels.
    """

    name: str
    op_type: str
    layer: str
    layout: str
    ms: float
    share: float


@dataclass(frozen=True)
class ProfileReport:
    """Where the time of a file goes.

    Attributes:
        name: What the file is called.
        batch: Samples in one run.
        threads: Threads inside one operator.
        provider: Onnxruntime's execution provider.
        total_ms: Sum over all kernels.
        kernels: All kernels, in the order in which they run.
        findings: What fell out of the blocked layout, and which layers of a quantized file are not computed in
            integers, with the reasons.
        machine: The machine and the versions.
    """

    name: str
    batch: int
    threads: int
    provider: str
    total_ms: float
    kernels: tuple[KernelShare, ...]
    findings: tuple[Finding, ...]
    machine: Machine

    def by_operator(self) -> list[tuple[str, str, int, float, float]]:
        """(operator, layout, number of kernels, ms, share), the most expensive one first."""
        found: dict[tuple[str, str], list[KernelShare]] = {}
        for kernel in self.kernels:
            found.setdefault((kernel.op_type, kernel.layout), []).append(kernel)
        rows = [
            (op, layout, len(k), sum(x.ms for x in k), sum(x.share for x in k)) for (op, layout), k in found.items()
        ]
        return sorted(rows, key=lambda row: -row[3])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "machine": self.machine.to_dict()}


def profile(
    source: OnnxSource,
    *,
    name: str | None = None,
    batch: int | None = None,
    threads: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    provider: str = CPU,
    min_seconds: float = 1.0,
) -> ProfileReport:
    """Return where the time of an ONNX file goes on this machine.

    Args:
        source: Path of the file, or its content.
        name: What to call it.
        batch: Samples in one run; by default what the shapes or the file say, or else one.
        threads: Threads inside one operator.
        shapes: Shapes by input name, where the file leaves more than the batch open; a first size of 0 leaves the
            batch open.
        seed: Of random inputs.
        provider: Onnxruntime's execution provider.
        min_seconds: Seconds of runs at least.

    Raises:
        ModelLoadError: The file is missing, broken or beyond this onnxruntime.
        UsageError: A size is open, or the batch is not that of the file or of the shapes.
    """
    name = name or label_of(source)
    source = with_names(source)
    specs = input_specs(open_session(source, threads=threads, provider=provider, name=name), name)
    batch = batch_of(specs, batch=batch, shapes=shapes, name=name)
    feeds = random_inputs(specs, input_shapes(specs, batch=batch, shapes=shapes, name=name), seed)
    graph = optimized_graph(source, threads=threads, provider=provider)
    target = LatencyTarget(threads=threads, batch=batch, provider=provider)
    times = kernel_times(source, feeds, target, min_seconds=min_seconds, min_runs=_RUNS)
    nodes = {node.name: node for node in graph.nodes}
    total = sum(seconds for _, seconds in times)
    kernels = []
    for key, seconds in times:
        node = nodes.get(key)
        op_type, layer, layout = (key, key, "plain") if node is None else (node.op_type, node.layer, node.layout)
        kernels.append(KernelShare(key, op_type, layer, layout, seconds * 1e3, seconds / total))
    return ProfileReport(
        name=name,
        batch=batch,
        threads=threads,
        provider=provider,
        total_ms=total * 1e3,
        kernels=tuple(kernels),
        findings=graph.findings,
        machine=machine_facts(),
    )

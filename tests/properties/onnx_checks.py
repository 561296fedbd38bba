"""What slimming promises of any file, asked without the project's own comparison: used by tests and long runs."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from builder import difference, run

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import GraphPruneError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.slim import slim_model
from graphprune.runtime.onnx_session import RUNTIME_ERRORS
from graphprune.slimming import SlimReport, slim_onnx
from graphprune.version import __version__

TOLERANCE = 1e-4

#: Operators whose result jumps: rounding in the last digit before them may become a large difference behind.
_JUMPS = frozenset("QuantizeLinear DynamicQuantizeLinear QLinearConv Round Floor ArgMax TopK Greater Less".split())

SHAPES = {"x": (2, 3, 8, 8)}


class Broken(AssertionError):
    """A promise that is not kept."""


def half(graph: ChannelGraph, rng: np.random.Generator) -> Mask:
    """Half of the exact groups of each set, at random; of a set of one group none."""
    removed = np.zeros(graph.n_groups, dtype=np.bool_)
    for group_set in graph.sets:
        exact = group_set.groups[graph.exact[group_set.groups]]
        removed[rng.permutation(exact)[: len(group_set.groups) // 2]] = True
    return removed


def check_valid(model: onnx.ModelProto, folder: Path, seed: int) -> dict[str, int]:
    """Slim a valid file unchanged, with half of its channels zeroed, and by a plan; the number of channels of each.

    Raises:
        Broken: anything is not as promised.
        GraphPruneError: a file was refused that has nothing wrong.
    """
    source, rng = folder / "given.onnx", np.random.default_rng(seed)
    onnx.save(model, source)
    first = _slim(source, folder / "unchanged.onnx")
    graph = trace_onnx(source)
    removed = half(graph, rng)
    if not removed.any():
        return {"groups": graph.n_groups, "removed": 0, "dead": first.removed_groups}
    plan = graph.plan(removed)
    zeroed = folder / "zeroed.onnx"
    mask_groups(graph, graph.removed_by(plan))
    ir.save(graph.front_end.model, zeroed)
    report = _slim(zeroed, folder / "dead.onnx")
    slim_onnx(source, folder / "planned.onnx", plan, force=True, shapes=SHAPES)
    compare(zeroed, folder / "planned.onnx")
    ours, theirs = (weights(folder / f"{name}.onnx") for name in ("dead", "planned"))
    if ours > theirs:
        raise Broken(f"dead channels were missed: {ours} weights are left, by the plan {theirs}")
    again = _slim(folder / "dead.onnx", folder / "again.onnx")
    if again.removed_groups:
        raise Broken(f"a second run still finds {again.removed_groups} groups")
    return {"groups": graph.n_groups, "removed": int(removed.sum()), "dead": report.removed_groups}


def _slim(source: Path, target: Path) -> SlimReport:
    """Slim without a plan, and look at everything that must hold of the result."""
    with Untouched(source):
        report = slim_onnx(source, target, force=True, shapes=SHAPES)
    without_rule = [name for name in report.unknown_operators if not _has_no_rule(name)]
    if without_rule:
        raise Broken(f"no rule was applied to {without_rule[0]}")
    if report.bytes_after > report.bytes_before:
        raise Broken(f"the file has grown from {report.bytes_before} to {report.bytes_after} bytes")
    if report.removed_groups or source.read_bytes() != target.read_bytes():  # else it was left as it came
        signature(source, target)
    onnx.checker.check_model(str(target), full_check=True)
    compare(source, target)
    return report


def _has_no_rule(name: str) -> bool:
    """Operators of other domains and bodies have none, nor what reads their results, where nothing tells the sizes."""
    return "." in name or name in ("If", "Loop", "Scan") or name.endswith("of unknown sizes")


def compare(reference: Path, result: Path, is_damaged: bool = False) -> None:
    """Raise Broken unless two files compute the same at both ends of onnxruntime's optimization.

    What is damaged may run at one batch size and not at another, and then says nothing.
    """
    jumps = any(node.op_type in _JUMPS for node in onnx.load(reference, load_external_data=False).graph.node)
    for batch, optimize in ((2, False), (3, False), (2, True)):
        feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)}
        if jumps and optimize:
            continue
        try:
            expected = run(reference, feeds, optimize)
        except RUNTIME_ERRORS:
            if is_damaged:
                continue
            raise
        found = difference(expected, run(result, feeds, optimize))
        if jumps and not found < TOLERANCE:  # sums of bytes that saturate; see `run`
            found = difference(run(reference, feeds, True), run(result, feeds, True))
        if not found < TOLERANCE:
            raise Broken(f"{result.name} differs by {found:.2g} of its scale (optimized: {optimize})")


def signature(source: Path, target: Path) -> None:
    """Raise Broken unless names, sizes, texts and versions survived."""
    before, after = onnx.load(source), onnx.load(target)
    fields: dict[str, Callable[[onnx.ModelProto], object]] = {
        "inputs": lambda m: [i.SerializeToString() for i in m.graph.input],
        "outputs": lambda m: [o.SerializeToString() for o in m.graph.output],
        "opset": lambda m: sorted((o.domain, o.version) for o in m.opset_import),
        "IR version": lambda m: m.ir_version,
        "text": lambda m: (m.doc_string, m.graph.doc_string, m.graph.name),
        "properties": lambda m: sorted((p.key, p.value) for p in m.metadata_props),
    }
    for name, read in fields.items():
        if read(before) != read(after):
            raise Broken(f"{name} changed: {read(before)} became {read(after)}")
    if (after.producer_name, after.producer_version) != ("graphprune", __version__):
        raise Broken(f"the producer is {after.producer_name} {after.producer_version}")


def weights(path: Path) -> int:
    """Numbers in all float literals."""
    literals = load_model(path).graph.initializers.values()
    tensors = [value.const_value for value in literals if value.const_value is not None]
    return sum(tensor.size for tensor in tensors if tensor.dtype.is_floating_point() and tensor.size > 1)


def check_corrupted(content: bytes, folder: Path) -> str:
    """Slim a file that has something wrong: "refused: ..." with the one line said, or "slimmed".

    Raises:
        Broken: the error is none of ours or has more than a line, something is left behind, or what was written is
            no valid file with the same outputs.
    """
    source, target = folder / "corrupted.onnx", folder / "result.onnx"
    source.write_bytes(content)
    said = []
    with Untouched(source):
        for plan in (None, PruningPlan({})):  # the first word has onnxruntime, or what reads files here
            said.append(_answer(lambda plan=plan: slim_onnx(source, target, plan, force=True)))
            if said[-1] == "slimmed":
                compare(source, target, is_damaged=True)
                target.unlink()
            left = sorted(path.name for path in folder.iterdir() if path != source)
            if left:
                raise Broken(f"{left[0]} is left behind ({said[-1]})")
        said.append(_answer(lambda: slim_model(load_model(source))))
    return said[1] if said[0] == "slimmed" else said[0]


def _answer(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except GraphPruneError as error:
        if len(str(error).splitlines()) != 1:
            raise Broken(f"the error has {len(str(error).splitlines())} lines: {error}") from error
        return f"refused: {type(error).__name__}: {error}"
    return "slimmed"


class Untouched:
    """A block that must not change a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.before = self._state()

    def __exit__(self, *_: object) -> None:
        if self._state() != self.before:
            raise Broken(f"{self.path.name} was changed")

    def _state(self) -> tuple[str, int]:
        return hashlib.sha256(self.path.read_bytes()).hexdigest(), self.path.stat().st_mtime_ns

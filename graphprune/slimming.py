"""ONNX in, slimmer ONNX out: channels removed, the result proven equal before it is written. Needs no torch."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.formats.files import refuse_overwrite
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.formats.onnx_files import folder_beside, write, written
from graphprune.formats.runnable import runnable
from graphprune.formats.sparse_storage import store_sparse_like
from graphprune.latency.target import LatencyTarget
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import ModelLoadError, UsageError, VerificationError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.clean import ZeroDenormalsPass
from graphprune.passes.onnx.contract import is_overridable
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.layout import ShiftPass
from graphprune.passes.onnx.model import free_sizes, load_model
from graphprune.passes.onnx.pages import let_go
from graphprune.passes.onnx.slim import planned_groups, slim_model
from graphprune.passes.onnx.wire import outline
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.memory import give_back_memory
from graphprune.runtime.onnx_session import external_files, one_line, open_session
from graphprune.verification.proof import run_reference
from graphprune.verification.verify import tolerance_of
from graphprune.version import __version__

__all__ = ["SlimReport", "slim_onnx"]

logger = logging.getLogger("graphprune")


@dataclass(frozen=True)
class SlimReport:
    """What slimming an ONNX file did.

    Attributes:
        removed_groups: coupled channel groups removed.
        removed_channels: output channels of layers that this is.
        macs_before: multiply-accumulates of one sample before.
        macs_after: the same after.
        params_before: weights before.
        params_after: weights after.
        bytes_before: size of the file before.
        bytes_after: size of the file after.
        max_error: largest difference of an output relative to the scale of its place, masked against slim.
        unknown_operators: operators without a rule, whose channels stay, and how often each occurs.
        missing_tensors: tensors that the plan cuts and the file does not have under their name and size; what
            they alone name has stayed.
        replaceable: weights that are inputs of the graph as well; a caller may replace them, so their channels stay.
        uncounted: nodes of the slim file that compute but are missing from `macs_after`, each with the reason.
        not_compared: what of the file could not be run, or of its outputs not be compared, and what was compared in
            its place.
    """

    removed_groups: int
    removed_channels: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    max_error: float
    unknown_operators: Mapping[str, int]
    missing_tensors: int = 0
    replaceable: int = 0
    uncounted: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def slim_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    plan: PruningPlan | str | os.PathLike[str] | None = None,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    latency_target: LatencyTarget | None = None,
    importance: str = "l2",
    align: int | str | None = None,
    allow_inexact: bool = False,
    seed: int = 0,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    force: bool = False,
) -> SlimReport:
    """Remove channels from an ONNX file: those that are dead, those of a plan, or the least important ones.

    Both files are run in onnxruntime before anything is written. With a plan, a ratio or a budget, the
    reference is the file with the planned channels set to zero: how good the slim model is, is not looked at.

    Args:
        source: file to read.
        target: file to write.
        plan: a plan or its file; without it, and without the next five, dead channels go: those that add nothing to
            the outputs.
        ratio: share of the channels of each set of coupled ones to remove, at most.
        macs: share of the multiply-accumulates that may be left.
        params: share of the parameters that may be left.
        speedup: how many times faster the file must become, measured in onnxruntime on this machine.
        latency_ms: milliseconds that one run may take, measured likewise.
        latency_target: threads, batch and provider that the latency is one of.
        importance: criterion of the weights alone by which the last five choose ("l2", "l1", "random").
        align: kept channels of every set are a multiple of this; "auto": widths that are quick on this machine. With
            `ratio` these are multiples of onnxruntime's block; budgets are met on the staircase that is measured.
        allow_inexact: also choose channels whose removal changes a statistic (LayerNorm, GroupNorm).
        seed: of the criterion "random".
        inputs: arrays by input name to check with, besides random ones at several batch sizes.
        shapes: sizes of inputs that the file leaves free (beyond the batch).
        tolerance: largest difference relative to the scale of its place in an output; by default what the file's number
            format leaves: 1e-4, and 1e-2 where it computes in float16.
        force: overwrite `target`.

    Raises:
        ModelLoadError: `source` cannot be read or run.
        OutputExistsError: `target` exists.
        UsageError: an argument is out of range, or more than one way to choose is asked for.
        PlanError: the plan does not fit the file.
        BudgetError: a budget cannot be reached.
        VerificationError: the slim file differs; names the first value that does. Nothing is written.
    """
    refuse_overwrite(target, force)
    asked = {"ratio": ratio, "macs": macs, "params": params, "speedup": speedup, "latency_ms": latency_ms}
    goals = {name: value for name, value in asked.items() if value is not None}
    if plan is not None and goals:
        raise UsageError(f"a plan says what goes: leave out {next(iter(goals))}")
    if plan is not None and not isinstance(plan, PruningPlan):
        plan = PruningPlan.load(plan)
    if goals:
        channels = _channels_of(align) if ratio is not None else align
        options = {"importance": importance, "align": channels, "allow_inexact": allow_inexact, "seed": seed}
        plan = _one_shot(source, goals, shapes, options, latency_target or LatencyTarget())
    name = Path(source).name
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(folder_beside(Path(target)))
        reference = Path(source) if plan is None else _masked(source, plan, shapes, folder)
        not_run: tuple[str, ...] = ()
        try:
            proof = run_reference(reference, inputs, shapes, name)
        except ModelLoadError:
            part = runnable(reference, name, folder)
            proof, not_run = run_reference(part.path, inputs, shapes, name), part.notes
        give_back_memory()
        model = load_model(source)
        tolerance = tolerance_of(load_model(proof.path) if not_run else model) if tolerance is None else tolerance
        done = slim_model(model, plan, free_sizes(model, shapes))
        changed = ZeroDenormalsPass()(model).modified or done.changed
        if done.removal.groups:  # a branch that went leaves an addition behind
            changed = ShiftPass()(model).modified or changed
        model.producer_name, model.producer_version = "graphprune", __version__
        with written(model, Path(target), force) as draft:
            let_go(model)  # before onnxruntime maps those of the draft
            give_back_memory()
            store_sparse_like(source, draft)
            _check(draft, Path(source), Path(target).name)
            ours = runnable(draft, "the slim file", folder).path if not_run else draft
            verdict = (proof if changed else proof.shortened()).verdict_on(ours, tolerance)
            before, after = onnx_cost(source, shapes=shapes), onnx_cost(draft, shapes=shapes)
    return SlimReport(
        removed_groups=done.removal.groups,
        removed_channels=done.removal.channels,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        max_error=verdict.error,
        unknown_operators=done.unknown,
        missing_tensors=done.removal.missing,
        replaceable=sum(is_overridable(model, value) for value in model.graph.initializers.values()),
        uncounted=after.uncounted,
        not_compared=(*not_run, *verdict.notes),
    )


def _channels_of(align: int | str | None) -> int | None:
    if align == "auto":
        return machine_facts().conv_block
    if isinstance(align, str):
        raise UsageError(f"align must be a number of channels or auto, not {align!r}")
    return align


def _one_shot(
    source: str | os.PathLike[str],
    goals: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None,
    options: Mapping[str, Any],
    target: LatencyTarget,
) -> PruningPlan:
    """The plan that removes what the weights alone say is least important."""
    from graphprune.api import plan as make_plan  # needs torch, which nothing else here does

    model = load_model(source)
    graph = trace_onnx(model, sizes=free_sizes(model, shapes))
    return make_plan(graph, **goals, **options, target=target, shapes=shapes)


def _masked(
    source: str | os.PathLike[str], plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]] | None, folder: Path
) -> Path:
    """The file with the planned channels set to zero, which the slim one must equal."""
    model = load_model(source)
    if _invalidity(Path(source)):  # onnxruntime runs some such files, and refuses others
        open_session(source, optimize=False)
    heads = plan.options.get("whole_heads", False)
    graph = trace_onnx(model, whole_heads=heads, sizes=free_sizes(model, shapes))
    mask_groups(graph, planned_groups(graph, plan))
    path = folder / "masked.onnx"
    write(graph.front_end.model, path)
    return path


def _check(draft: Path, source: Path, name: str) -> None:
    """Raise VerificationError unless the file is valid ONNX, or the one that it comes from is not either."""
    problem = _invalidity(draft)
    if problem and not _invalidity(source):
        raise VerificationError(f"{name}: the slim file would be no valid ONNX: {problem}")
    if problem:
        logger.warning("%s is not valid ONNX, and so is what is made of it: %s", source, problem)


def _invalidity(path: Path) -> str:
    """What onnx finds wrong with a file; looked at without its weights in memory, by an outline that refers to them.

    The folder of the file may be one that cannot be written to. So the outline lies elsewhere, with empty files of the
    same size in place of those that hold weights.
    """
    text = outline(path, location=path.name)
    model = onnx.load_model_from_string(text)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as name:
        folder = Path(name)
        for holder in {path.name, *external_files(model)}:
            if (path.parent / holder).is_file() and ".." not in Path(holder).parts and not Path(holder).is_absolute():
                (folder / holder).parent.mkdir(parents=True, exist_ok=True)
                with (folder / holder).open("wb") as stand_in:
                    stand_in.truncate((path.parent / holder).stat().st_size)
        sketch = folder / f"{path.name}.outline"
        sketch.write_bytes(text)
        try:
            if model.graph.sparse_initializer:
                onnx.checker.check_model(str(sketch))
                sketch.write_bytes(_with_dense_types(model).SerializeToString())
            onnx.checker.check_model(str(sketch), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
            return one_line(error)
    return ""


def _with_dense_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of its sparse literals: onnx's inference takes the latter for another type.

    By the letter of the specification it is right. But onnxruntime writes them out as it loads them, and reads them as
    any other weight.
    """
    for sparse in model.graph.sparse_initializer:
        value = onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        model.graph.input.append(value)
    model.graph.ClearField("sparse_initializer")
    return model

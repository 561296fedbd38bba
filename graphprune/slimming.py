"""ONNX in, slimmer ONNX out: channels removed, the result proven equal before it is written. Needs no torch."""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.formats.drafts import drafted, refuse_invalid
from graphprune.formats.files import refuse_overwrite
from graphprune.formats.masked import Work, mask_file
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.formats.onnx_files import folder_beside, write
from graphprune.formats.runnable import runnable
from graphprune.freezing import frozen_groups, patterns_of
from graphprune.latency.target import LatencyTarget
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import BudgetError, PlanError, UsageError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.clean import ZeroDenormalsPass
from graphprune.passes.onnx.contract import is_overridable
from graphprune.passes.onnx.layout import ShiftPass
from graphprune.passes.onnx.model import free_sizes, load_model
from graphprune.passes.onnx.pages import let_go
from graphprune.passes.onnx.slim import Keep, Slimmed, slim_model
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.memory import give_back_memory
from graphprune.verification.proof import Verdict
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
        max_error: largest difference of an output relative to the scale of its place, masked against slim; where groups
            go that are not exact, without them; None where nothing was compared.
        unknown_operators: operators without a rule, whose channels stay, and how often each occurs.
        missing_tensors: tensors that the plan cuts and the file does not have under their name and size; what
            they alone name has stayed.
        replaceable: weights that are inputs of the graph as well; a caller may replace them, so their channels stay.
        uncounted: nodes of the slim file that compute but are missing from `macs_after`, each with the reason.
        not_compared: what of the file could not be run, or of its outputs not be compared, and what was compared in
            its place.
        inexact_groups: of `removed_groups`, those whose removal changes what stays (statistics over channels); they
            differ from zeros in their place, and `not_compared` says how far.
        nothing: why nothing was removed, if so.
    """

    removed_groups: int
    removed_channels: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    max_error: float | None
    unknown_operators: Mapping[str, int]
    missing_tensors: int = 0
    replaceable: int = 0
    uncounted: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    inexact_groups: int = 0
    nothing: str = ""

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
    freeze: str | Sequence[str] = (),
    seed: int = 0,
    inputs: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float | None = None,
    force: bool = False,
) -> SlimReport:
    """Remove channels from an ONNX file: those that are dead, those of a plan, or the least important ones.

    Both files are run in onnxruntime before anything is written. With a plan, a ratio or a budget, the
    reference is the file with the planned channels set to zero: how good the slim model is, is not looked at. Channels
    that are not exact are left out of that, and the report says how far their removal moves the outputs.

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
        freeze: patterns (`layer1.*`) of names of weights, of nodes, or of modules around them, that keep all their
            output channels.
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
    freeze = patterns_of(freeze)
    if plan is not None and (goals or freeze):
        raise UsageError(f"a plan says what goes: leave out {next(iter(goals), 'freeze')}")
    if plan is not None and not isinstance(plan, PruningPlan):
        plan = PruningPlan.load(plan)
    nothing = (
        "there is nothing to remove: no channel is dead" if plan is None else "the plan removes nothing of this file"
    )
    source, target = Path(source), Path(target)
    choose = None
    if goals:
        channels = _channels_of(align) if ratio is not None else align
        options: dict[str, Any] = {"importance": importance, "align": channels, "allow_inexact": allow_inexact}
        options |= {"seed": seed, "freeze": freeze}
        choose = partial(_one_shot, source, goals, shapes, options, latency_target or LatencyTarget())
    may_grow = plan is not None  # as it is asked for channel by channel
    with contextlib.ExitStack() as stack:
        if choose is not None:
            plan, nothing = choose()
        work = Work(source, stack.enter_context(folder_beside(target)), inputs, shapes, tolerance)
        try:
            return _slim(work, target, plan, freeze, force, nothing, may_grow=may_grow)
        except _GrownError:
            if choose is not None:
                with contextlib.suppress(BudgetError):  # that the first plan keeps
                    plan, nothing = choose(whole_vectors=True)
            return _slim(work, target, plan, freeze, force, nothing, whole_vectors=True)


class _GrownError(Exception):
    """The slim file would be larger than the one that came."""


def _slim(
    work: Work,
    target: Path,
    plan: PruningPlan | None,
    freeze: Sequence[str],
    force: bool,
    nothing: str,
    *,
    may_grow: bool = True,
    whole_vectors: bool = False,
) -> SlimReport:
    """Write the slim file once it is proven.

    Args:
        work: the file, and what is to be compared.
        target: the file to write.
        plan: what goes; None: what is dead.
        freeze: names of layers that stay.
        force: overwrite.
        nothing: what to say if nothing goes.
        may_grow: write a file that is larger than the one that came, with a warning.
        whole_vectors: vectors that several layers share stay shared, where nothing is planned.

    Raises:
        _GrownError: it would be larger, and may not be; nothing is written.
    """
    source, shapes, folder = work.source, work.shapes, work.folder
    masked = None if plan is None else mask_file(source, plan, shapes, folder / "masked.onnx")
    part = _prove(work, masked.exact) if masked is not None and masked.exact is not None else None
    proof, not_run = work.reference(source if masked is None else masked.path)
    give_back_memory()
    model = load_model(source)
    limit = work.limit(model, proof, bool(not_run))
    sizes = free_sizes(model, shapes)
    keep = _keeping(model, freeze, sizes) if plan is None and freeze else None
    done = _slimmed(model, plan, sizes, keep, whole_vectors)
    model.producer_name, model.producer_version = "graphprune", __version__
    replaceable = sum(is_overridable(model, value) for value in model.graph.initializers.values())
    with drafted(model, source, target, force, folder, bool(done.removal.groups)) as draft:
        let_go(model)  # before onnxruntime maps those of the draft
        give_back_memory()
        refuse_invalid(draft, source, target.name)
        ours = runnable(draft, "the slim file", folder).path if not_run else draft
        if masked is not None and masked.inexact:
            verdict = masked.moved(proof.distance_to(ours, limit), part)
        else:
            verdict = (proof if done.changed else proof.shortened()).verdict_on(ours, limit)
        if problem := proof.problem_when_optimized(ours):
            logger.warning("%s runs in onnxruntime only with its graph optimization off: %s", target.name, problem)
        given = proof.cases[0][0] if not not_run else None
        before, after = (onnx_cost(path, shapes=shapes, inputs=given) for path in (source, draft))
        if done.removal.groups and after.size_bytes > before.size_bytes:
            if not may_grow:
                raise _GrownError
            logger.warning(
                "%s is larger than %s: layers that shared numbers lose different channels, and each stores its own now",
                *(target.name, source.name),
            )
    return SlimReport(
        removed_groups=done.removal.groups,
        removed_channels=done.removal.channels,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        bytes_before=before.size_bytes,
        bytes_after=after.size_bytes,
        max_error=None if masked is not None and masked.inexact and part is None else verdict.error,
        unknown_operators=done.unknown,
        missing_tensors=done.removal.missing,
        replaceable=replaceable,
        uncounted=after.uncounted,
        not_compared=(*not_run, *verdict.notes),
        inexact_groups=0 if masked is None else masked.inexact_groups,
        nothing="" if done.removal.groups else nothing,
    )


def _prove(work: Work, plan: PruningPlan) -> Verdict:
    """What is found where a plan of exact groups alone is carried out.

    Raises:
        VerificationError: the file without them differs from the one with them at zero.
    """
    proof, not_run = work.reference(mask_file(work.source, plan, work.shapes, work.folder / "zeros.onnx").path)
    model = load_model(work.source)
    limit = work.limit(model, proof, bool(not_run))
    _slimmed(model, plan, free_sizes(model, work.shapes))
    draft = work.folder / "exact.onnx"
    write(model, draft)
    let_go(model)
    return proof.verdict_on(runnable(draft, "the slim file", work.folder).path if not_run else draft, limit)


def _slimmed(
    model: ir.Model,
    plan: PruningPlan | None,
    sizes: Mapping[str, int],
    keep: Keep | None = None,
    whole_vectors: bool = False,
) -> Slimmed:
    """What was done to a model in place: channels removed, and what becomes superfluous with them."""
    done = slim_model(model, plan, sizes, keep, whole_vectors)
    changed = ZeroDenormalsPass()(model).modified or done.changed
    if done.removal.groups:  # a branch that went leaves an addition behind
        changed = ShiftPass()(model).modified or changed
    return replace(done, changed=changed)


def _keeping(model: ir.Model, freeze: Sequence[str], sizes: Mapping[str, int]) -> Keep:
    """Says which groups of a graph of the model must stay, (G,) bool.

    Raises:
        PlanError: nothing has a name that fits one of the patterns.
    """
    frozen_groups(trace_onnx(model, sizes=sizes), freeze)  # which raises

    def keep(graph: ChannelGraph) -> Mask:
        mask = np.zeros(graph.n_groups, dtype=np.bool_)
        for pattern in freeze:
            with contextlib.suppress(PlanError):  # it has gone by now
                mask |= frozen_groups(graph, (pattern,))
        return mask

    return keep


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
    whole_vectors: bool = False,
) -> tuple[PruningPlan, str]:
    """The plan that removes what the weights alone say is least important, and what to say if that is nothing."""
    from graphprune.api import plan as make_plan  # needs torch, which nothing else here does

    model = load_model(source)
    graph = trace_onnx(model, sizes=free_sizes(model, shapes), whole_vectors=whole_vectors)
    if not graph.n_groups:
        nothing = "nothing can be removed: `graphprune inspect` says why of each layer"
    elif not graph.exact.any() and not options["allow_inexact"]:
        nothing = "nothing can be removed exactly; allow_inexact=True takes channels that statistics depend on"
    else:
        nothing = "nothing is removed: what was asked for is less than a channel of any layer that may lose some"
    return make_plan(graph, **goals, **options, target=target, shapes=shapes), nothing

"""The first two steps of the Python interface: what is coupled (`trace`), and what to remove at once (`plan`).

A one-shot plan looks at the weights, or at a few images. It is for a first look, for models that are trained further
elsewhere, and for tests; `compress` decides all along a training.
"""

import dataclasses
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphprune.allocation import (
    LATENCY,
    SEARCHES,
    Limits,
    Problem,
    allocate,
    allocator,
    check_reachable,
    count_dense,
    removable_groups,
    require_policy,
    select_ratio,
)
from graphprune.config import require_choice
from graphprune.formats.loading import load_model
from graphprune.freezing import frozen_groups, patterns_of
from graphprune.importance.scoring import score_groups
from graphprune.inputs import Images
from graphprune.latency import LatencyTarget
from graphprune.latency.stopwatch import Stopwatch
from graphprune.latency.stopwatch import stopwatch as new_stopwatch
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, UsageError
from graphprune.passes.fx import analyze
from graphprune.search import Search, SearchOptions

__all__ = ["plan", "trace"]

Scores = np.ndarray | torch.Tensor


def trace(model: Any, example_inputs: tuple[Any, ...] | None = None, *, whole_heads: bool = False) -> ChannelGraph:
    """Return the coupled channel groups of a model.

    Args:
        model: an `nn.Module`, an exported program, a captured module, or the path of a .pt2 or .onnx file.
        example_inputs: the arguments of one call; a .pt2 or .onnx file brings its own.
        whole_heads: attention loses heads, instead of the same channel of every head.

    Raises:
        CaptureError: the model cannot be captured.
        ModelLoadError: the file is missing or broken.
    """
    if isinstance(model, str | os.PathLike):
        if Path(model).suffix.lower() == ".onnx":
            from graphprune.passes.onnx.analyze import trace_onnx

            return trace_onnx(model, whole_heads=whole_heads)
        model = load_model(Path(model))
    return analyze.trace(model, example_inputs, whole_heads=whole_heads)


def plan(
    graph: ChannelGraph,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    importance: str | Scores = "l2",
    images: Images | None = None,
    freeze: str | Sequence[str] = (),
    align: int | str | None = None,
    min_channels: int = 1,
    policy: str = "auto",
    target: LatencyTarget | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_inexact: bool = False,
    seed: int = 0,
    stopwatch: Stopwatch | None = None,
    search: SearchOptions | None = None,
    output_loss: str = "auto",
) -> PruningPlan:
    """Return the plan that removes the channels worth least, without any training.

    Give either `ratio`, which takes the same share of channels from every set of coupled ones, or budgets, which
    take the least important channels for what they cost wherever they are. Several budgets must all hold.

    A budget in latency is one of the exported file in onnxruntime on this machine: the first time, a minute or two of
    measuring tell how long every layer takes at which width; then the plan is cut, measured, and corrected until the
    file, without its training, is as fast as asked for.

    Args:
        graph: what `trace` returned.
        ratio: share of the channels of each set to remove, at most.
        macs: share of the multiply-accumulates that may be left.
        params: share of the parameters that may be left.
        speedup: how many times faster than the dense model it must be; 2.0 is half the latency.
        latency_ms: milliseconds that one run may take.
        importance: name of a criterion, or one score a group. "random", "l1", "l2", "bn_scale" and "fpgm" look at the
            weights; "taylor", "apoz", "entropy", "hrank" and "reconstruction" need images. The last one is for what
            `reconstruct` does afterwards.
        images: for criteria and policies that need them: a path, what `load_images` returned, or an array of network
            inputs.
        freeze: patterns (`layer1.*`) of modules or parameters that keep all their output channels.
        align: kept channels of every set that loses some are a multiple of this; "auto": widths on the staircase
            that was measured on this machine, none slower than a wider one. Budgets in latency choose such widths by
            themselves.
        min_channels: channels that every set keeps at least, where it does not go as a whole.
        policy: how many channels go from where: "knapsack", "threshold", "uniform"; "auto" takes the knapsack where
            latency matters and the threshold elsewhere. "ddpg", "bee-colony" and "random" try allocations out on the
            images, which takes a second or so for each.
        target: threads, batch and execution provider that the latency is one of.
        shapes: sizes that a graph of an ONNX file leaves open beyond the batch, by input, to measure latencies with.
        allow_inexact: also remove groups whose removal changes a statistic (LayerNorm, GroupNorm).
        seed: of the criterion "random", and of what latency is measured on.
        stopwatch: measures latencies; by default one of the network that is exported for it.
        search: how long a policy that searches does so, and on how many images.
        output_loss: what the outputs are, for criteria and policies that run the model: "kl" for class logits, "mse"
            for anything else, "auto" decides by their shape.

    Raises:
        UsageError: an argument is out of range, or neither or both kinds of target are given.
        BudgetError: the budget cannot be reached.
        PlanError: a pattern of `freeze` fits nothing, or there are not as many scores as groups.
        DataError: the model does not take these images.
        UnsupportedModelError: images are asked for, and the model takes no others than batches of one size, or none.
    """
    given = {"ratio": ratio, "macs": macs, "params": params, "speedup": speedup, "latency_ms": latency_ms}
    asked = {name: _number(name, value) for name, value in given.items() if value is not None}
    ratio, speedup, latency_ms = (asked.get(name) for name in ("ratio", "speedup", "latency_ms"))
    budgets = {name: value for name, value in asked.items() if name in ("macs", "params")}
    freeze = patterns_of(freeze)
    align = align if align is None or isinstance(align, str) else _whole("align", align)
    min_channels, seed = _whole("min_channels", min_channels, least=0), _whole("seed", seed, least=0)
    _check_targets(ratio, budgets, speedup, latency_ms, align)
    require_choice("output_loss", output_loss)
    if ratio is not None and policy != "auto":
        raise UsageError(f"ratio takes the same share from every set: policy {policy} is for budgets, leave it out")
    require_policy(policy, latency=speedup is not None or latency_ms is not None or align == "auto")
    scores = _scores(graph, importance, images, seed, output_loss)
    removable = removable_groups(graph.sets, graph.exact, allow_inexact) & ~frozen_groups(graph, freeze)
    limits = Limits.of(min_channels, align)
    dense = count_dense(graph)
    problem = Problem(
        graph,
        scores,
        {unit: share * dense[unit] for unit, share in budgets.items()},
        removable,
        limits,
        is_on_steps=align == "auto",
        search=_search(graph, policy, images, search or SearchOptions(), seed, output_loss),
    )
    meta: dict[str, Any] = {**asked}
    if ratio is None:
        check_reachable(graph.cost, problem.budgets, graph.sets, removable, limits)
    if ratio is not None:
        removed = select_ratio(scores, ratio, graph.sets, removable, limits)
    elif speedup is None and latency_ms is None and align != "auto":
        removed = allocate(problem, policy)
    elif stopwatch is not None:
        removed = _measured(problem, policy, speedup, latency_ms, stopwatch, meta)
    else:
        with new_stopwatch(graph, target or LatencyTarget(), shapes=shapes, seed=seed) as opened:
            removed = _measured(problem, policy, speedup, latency_ms, opened, meta)
    meta["importance"] = importance if isinstance(importance, str) else "given"
    if ratio is None:
        meta["policy"] = policy
    return graph.plan(removed, **meta, freeze=list(freeze), align=align or 1, seed=seed)


def _measured(
    problem: Problem,
    policy: str,
    speedup: float | None,
    latency_ms: float | None,
    stopwatch: Stopwatch,
    meta: dict[str, Any],
) -> np.ndarray:
    """The groups to remove for a budget in latency, or on the staircase; notes in `meta` what was measured."""
    problem = dataclasses.replace(problem, latency=stopwatch.model)
    if speedup is None and latency_ms is None:
        return allocate(problem, policy)
    share = stopwatch.share_of(speedup, latency_ms)
    if share >= 1 and not problem.budgets:
        raise UsageError(
            f"the dense network takes {stopwatch.dense_ms():.3g} ms here, less than the {latency_ms:.3g} ms asked "
            "for: there is nothing to do"
        )
    if share >= 1:  # the other budgets may do; fewer channels can be slower, so it is measured
        removed = allocate(problem, policy)
        measured = stopwatch.share(~removed)
        if measured <= share:
            meta["measured_speedup"] = round(1 / measured, 4)
            return removed
    again = allocator(policy)
    reached = stopwatch.reach(
        share, lambda budget: again(dataclasses.replace(problem, budgets={**problem.budgets, LATENCY: budget}))
    )
    reached.require(share)
    meta["measured_speedup"] = round(1 / reached.share, 4)
    return reached.removed


def _search(
    graph: ChannelGraph, policy: str, images: Images | None, options: SearchOptions, seed: int, output_loss: str
) -> Search | None:
    """What tries allocations out, for a policy that does."""
    if policy not in SEARCHES:
        return None
    if images is None:
        raise UsageError(f"policy {policy} tries allocations out on images: give some")
    from graphprune.search.rewards import OneShot

    oneshot = OneShot(graph, images, options.images, seed, output_loss)
    return Search(oneshot, oneshot.fingerprint, options, seed)


def _check_targets(
    ratio: float | None,
    budgets: dict[str, float],
    speedup: float | None,
    latency_ms: float | None,
    align: int | str | None,
) -> None:
    if (ratio is None) == (not budgets and speedup is None and latency_ms is None):
        raise UsageError("say what to remove with either ratio=, or macs=, params=, speedup= and latency_ms=")
    for name, share in ({"ratio": ratio} if ratio is not None else budgets).items():
        if not 0 < share < 1:  # also false for NaN
            raise UsageError(f"{name} must be between 0 and 1, not {share}")
    if speedup is not None and not 1 < speedup < math.inf:
        raise UsageError(f"speedup must be above 1, not {speedup}")
    if latency_ms is not None and not 0 < latency_ms < math.inf:
        raise UsageError(f"latency_ms must be above 0, not {latency_ms}")
    if align == "auto" and ratio is not None:
        raise UsageError('align="auto" is for budgets; with ratio= give a number of channels')
    if isinstance(align, str) and align != "auto":
        raise UsageError(f"align must be a number of channels or auto, not {align!r}")


def _number(name: str, value: Any) -> float:
    """A number of any library as one of Python, which a plan can be written down with."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a number, not {value!r}") from error


def _whole(name: str, value: Any, least: int = 1) -> int:
    """The same for whole numbers."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from error
    if number < least:
        raise UsageError(f"{name} must be at least {least}, not {number}")
    return number


def _scores(
    graph: ChannelGraph, importance: str | Scores, images: Images | None, seed: int, output_loss: str
) -> np.ndarray:
    if not isinstance(importance, str):
        given = importance.detach().cpu() if isinstance(importance, torch.Tensor) else importance
        scores = np.asarray(given, dtype=np.float64)
        if scores.shape != (graph.n_groups,) or not np.isfinite(scores).all():
            raise PlanError(f"importance must be {graph.n_groups} finite numbers, one a group; got {scores.shape}")
        return scores - min(0.0, float(scores.min(initial=0.0)))
    return score_groups(graph, importance, images, seed, output_loss)

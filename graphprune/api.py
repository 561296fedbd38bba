"""The first two steps of the Python interface: what is coupled (`trace`), and what to remove at once (`plan`).

A one-shot plan looks at the weights, or at a few images. It is for a first look, for models that are trained further
elsewhere, and for tests; `compress` decides all along a training.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphprune.allocation import Limits, removable_groups, select, select_ratio
from graphprune.freezing import frozen_groups
from graphprune.inputs import Images
from graphprune.loading import load_model
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, UsageError
from graphprune.passes.fx import analyze
from graphprune.scoring import score_groups

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
    importance: str | Scores = "l2",
    images: Images | None = None,
    freeze: Sequence[str] = (),
    align: int | None = None,
    allow_inexact: bool = False,
    seed: int = 0,
) -> PruningPlan:
    """Return the plan that removes the channels worth least, without any training.

    Give either `ratio`, which takes the same share of channels from every set of coupled ones, or budgets, which
    take the least important channels for what they cost wherever they are.

    Args:
        graph: what `trace` returned.
        ratio: share of the channels of each set to remove, at most.
        macs: share of the multiply-accumulates that may be left.
        params: share of the parameters that may be left.
        importance: name of a criterion, or one score a group. "random", "l1", "l2", "bn_scale" and "fpgm" look at the
            weights; "taylor", "apoz", "entropy" and "hrank" need images.
        images: for criteria that need them: a path, what `load_images` returned, or an array of network inputs.
        freeze: patterns (`layer1.*`) of modules or parameters that keep all their output channels.
        align: kept channels of every set are a multiple of this.
        allow_inexact: also remove groups whose removal changes a statistic (LayerNorm, GroupNorm).
        seed: of the criterion "random".

    Raises:
        UsageError: an argument is out of range, or neither or both kinds of target are given.
        BudgetError: the budget cannot be reached.
        PlanError: a pattern of `freeze` fits nothing, or there are not as many scores as groups.
    """
    budgets = {name: share for name, share in (("macs", macs), ("params", params)) if share is not None}
    _check_targets(ratio, budgets, align)
    scores = _scores(graph, importance, images, seed)
    removable = removable_groups(graph.sets, graph.exact, allow_inexact) & ~frozen_groups(graph, freeze)
    limits = Limits(align=align or 1)
    if ratio is not None:
        removed = select_ratio(scores, ratio, graph.sets, removable, limits)
    else:
        dense = {unit: float(getattr(graph.cost, unit)(graph.all_kept())) for unit in budgets}
        goals = {unit: share * dense[unit] for unit, share in budgets.items()}
        removed = select(scores, graph.cost, goals, graph.sets, removable, limits=limits)
    target = budgets if ratio is None else {"ratio": ratio}
    name = importance if isinstance(importance, str) else "given"
    return graph.plan(removed, **target, importance=name, freeze=list(freeze), align=align or 1, seed=seed)


def _check_targets(ratio: float | None, budgets: dict[str, float], align: int | None) -> None:
    if (ratio is None) == (not budgets):
        raise UsageError("say what to remove with either ratio=, or macs= and params=")
    for name, share in ({"ratio": ratio} if ratio is not None else budgets).items():
        if not 0 < share < 1:  # also false for NaN
            raise UsageError(f"{name} must be between 0 and 1, not {share}")
    if align is not None and align < 1:
        raise UsageError(f"align must be at least 1, not {align}")


def _scores(graph: ChannelGraph, importance: str | Scores, images: Images | None, seed: int) -> np.ndarray:
    if not isinstance(importance, str):
        scores = np.asarray(importance, dtype=np.float64)
        if scores.shape != (graph.n_groups,) or not np.isfinite(scores).all():
            raise PlanError(f"importance must be {graph.n_groups} finite numbers, one a group; got {scores.shape}")
        return scores - min(0.0, float(scores.min(initial=0.0)))
    return score_groups(graph, importance, images, seed)

"""The first two steps of the Python interface: what is coupled (`trace`), and what to remove at once (`plan`).

A one-shot plan looks at the weights alone. It is for a first look, for models that are trained further elsewhere,
and for tests; `compress` decides from what the model computes on images.
"""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graphprune.allocation import Limits, removable_groups, select, select_ratio
from graphprune.importance import CRITERIA, Evidence, criterion, needs_gradient
from graphprune.loading import load_model
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError, UsageError
from graphprune.passes.fx import analyze
from graphprune.sparsity import GroupIndex

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
    freeze: Sequence[str] = (),
    align: int | None = None,
    allow_inexact: bool = False,
    seed: int = 0,
) -> PruningPlan:
    """Return the plan that removes the channels worth least, without any image.

    Give either `ratio`, which takes the same share of channels from every set of coupled ones, or budgets, which
    take the least important channels for what they cost wherever they are.

    Args:
        graph: what `trace` returned.
        ratio: share of the channels of each set to remove, at most.
        macs: share of the multiply-accumulates that may be left.
        params: share of the parameters that may be left.
        importance: name of a criterion that needs no image ("l2", "l1", "random"), or one score a group.
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
    scores = _scores(graph, importance, seed)
    removable = removable_groups(graph.sets, graph.exact, allow_inexact) & ~_frozen(graph, freeze)
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


def _scores(graph: ChannelGraph, importance: str | Scores, seed: int) -> np.ndarray:
    if not isinstance(importance, str):
        scores = np.asarray(importance, dtype=np.float64)
        if scores.shape != (graph.n_groups,) or not np.isfinite(scores).all():
            raise PlanError(f"importance must be {graph.n_groups} finite numbers, one a group; got {scores.shape}")
        return scores - min(0.0, float(scores.min(initial=0.0)))
    score = criterion(importance)
    if needs_gradient(importance):
        known = ", ".join(name for name in CRITERIA if not needs_gradient(name))
        raise UsageError(f"importance {importance!r} needs images, a one-shot plan has none; known here: {known}")
    index = GroupIndex(_parameters(graph), graph.axes, graph.n_groups)
    return score(Evidence(index, torch.Generator().manual_seed(seed))).double().numpy()


def _parameters(graph: ChannelGraph) -> dict[str, nn.Parameter]:
    """The weights that the groups run through, of a torch graph or of an ONNX one."""
    front = graph.front_end
    if hasattr(front, "module"):
        return dict(front.module.named_parameters())
    from graphprune.passes.onnx.quantized import is_setting, real

    literals = {name: front.names[name] for name in sorted({name for name, _ in graph.axes})}
    arrays = {name: real(value) for name, value in literals.items() if not is_setting(value)}
    return {name: nn.Parameter(torch.tensor(array), requires_grad=False) for name, array in arrays.items()}


def _frozen(graph: ChannelGraph, patterns: Sequence[str]) -> np.ndarray:
    """(n_groups,) mask of the groups that are output channels of a module or parameter so named."""
    mask = np.zeros(graph.n_groups, dtype=bool)
    produced = _output_groups(graph) if patterns else {}
    for pattern in patterns:
        names = [name for name in graph.shapes if any(fnmatchcase(path, pattern) for path in _paths(name))]
        if not names:
            raise PlanError(f"freeze: nothing is named {pattern!r}; see `graphprune inspect` for the names of layers")
        for name in names:
            # What is computed from the parameter in a way that hides its output channels keeps all it touches.
            touched = [ids for (other, _), ids in graph.axes.items() if other == name]
            for ids in produced.get(name, touched):
                mask[ids[ids >= 0]] = True
    return mask


def _paths(name: str) -> list[str]:
    """A parameter's name and those of all modules around it."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _output_groups(graph: ChannelGraph) -> dict[str, list[np.ndarray]]:
    """Parameter -> group of each channel of the values that are computed with it at once."""
    found: dict[str, list[np.ndarray]] = {}
    for node, (_, _, op) in graph.front_end.ops.items():
        result = node if isinstance(node, str) else node.outputs[0].name
        if result not in graph.value_groups:
            continue
        for value in op.values():
            if value.parameter is not None:
                found.setdefault(value.parameter, []).append(graph.value_groups[result][1])
    return found

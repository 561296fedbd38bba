"""The same model through GraphPrune and through torch-pruning, interleaved in one process or each in its own.

Torch-pruning is used as its own examples use it: a magnitude pruner with group norms, the classifier's last
layer left alone, heads of fused attention layers declared, and for torchvision's ViT the rounding and the
attribute that its example sets by hand.
"""

import argparse
import copy
import gc
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ["TIMM_FUSED_ATTN"] = "0"  # as in torch-pruning's examples; for both tools

import catalog
import torch
import torch_pruning as tp
from measure import outputs, prune, warm_up
from process import MEGABYTE, Row, Stages, reset_peak, resident_mb
from torch import nn
from weights import randomize

Once = Callable[[Stages, nn.Module, tuple[Any, ...], argparse.Namespace], nn.Module]


def ours_once(stages: Stages, model: nn.Module, inputs: tuple[Any, ...], arguments: argparse.Namespace) -> nn.Module:
    """Capture, trace, plan and slim with GraphPrune."""
    return prune(stages, model, inputs, arguments, importance="l2")[2]


def theirs_once(stages: Stages, model: nn.Module, inputs: tuple[Any, ...], arguments: argparse.Namespace) -> nn.Module:
    """Build the dependency graph alone, then build and prune with torch-pruning; the model is changed in place."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if arguments.build_alone:
        with stages("build_graph"):
            tp.DependencyGraph().build_dependency(model, example_inputs=inputs[0])
        gc.collect()
    classes = {x.shape[1] for x in outputs(model, inputs) if x.dim() > 1}
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "num_heads") and fused(m)}
    vit = type(model).__name__ == "VisionTransformer" and hasattr(model, "conv_proj")
    with stages("build_and_prune"):
        pruner = tp.pruner.MagnitudePruner(
            model,
            inputs[0],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=arguments.ratio,
            ignored_layers=[m for m in model.modules() if last_layer(m, classes)],
            in_channel_groups={},
            out_channel_groups={},
            num_heads=dict(heads),
            round_to=model.encoder.layers[0].num_heads if vit else None,
        )
        pruner.step()
    if vit:
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if hasattr(module, "num_heads") and fused(module) and module.qkv in heads:
            module.num_heads = pruner.num_heads.get(module.qkv, module.num_heads)
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
    return model


def fused(module: nn.Module) -> bool:
    """An attention layer with one linear layer for queries, keys and values."""
    return isinstance(getattr(module, "qkv", None), nn.Linear)


def last_layer(module: nn.Module, classes: set[int]) -> bool:
    """A layer that gives as many features as there are classes."""
    if isinstance(module, nn.Linear):
        return module.out_features in classes
    return isinstance(module, nn.Conv2d) and module.out_channels in classes


ONCE: dict[str, Once] = {"ours": ours_once, "theirs": theirs_once}


def prepare(stages: Stages, arguments: argparse.Namespace) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model of both tools."""
    with stages("build"):
        torch.manual_seed(arguments.seed)
        model, inputs = catalog.build(arguments.suite, arguments.model)
        randomize(model, arguments.seed)
    stages.row["parameters"] = sum(p.numel() for p in model.parameters())
    return model, inputs


def alone(tool: str) -> Callable[[Stages, argparse.Namespace], None]:
    """A task that runs one tool once: does it work, and how much memory does it take."""

    def task(stages: Stages, arguments: argparse.Namespace) -> None:
        row = stages.row
        arguments.build_alone = False
        warm_up()
        theirs_once(Stages({}), *small(), arguments)
        gc.collect()
        baseline, _ = resident_mb()
        model, inputs = prepare(stages, arguments)
        if row["parameters"] > arguments.max_parameters:
            row["status"] = "too big"
            return
        size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / MEGABYTE
        before = [x.shape for x in outputs(model, inputs)]
        gc.collect()
        reset_peak()
        pruned = ONCE[tool](stages, model, inputs, arguments)
        row["memory_mb"] = {"model": round(size, 1), "peak": round(resident_mb()[1] - baseline, 1)}
        stages.row["stage"] = "run the pruned model"
        after = [x.shape for x in outputs(pruned.eval(), inputs)]
        row["parameters_left"] = sum(p.numel() for p in pruned.parameters())
        row["status"] = "works" if before == after else "shape changed"

    return task


def small() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A network for warming up."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    return model, (torch.randn(1, 3, 8, 8),)


def both(stages: Stages, arguments: argparse.Namespace) -> None:
    """Time the tools in turns (A, B, A, B, ...) on copies of one model; medians over the repeats."""
    arguments.build_alone = True
    warm_up()
    theirs_once(Stages({}), *small(), arguments)
    model, inputs = prepare(stages, arguments)
    runs: dict[str, list[Stages]] = {tool: [] for tool in ONCE}
    for _ in range(arguments.repeats):
        for tool, once in ONCE.items():
            stages.row["stage"] = tool
            stages.save()
            subject = copy.deepcopy(model)
            gc.collect()
            runs[tool].append(Stages({}))
            once(runs[tool][-1], subject, inputs, arguments)
            del subject
    for tool, timed in runs.items():
        stages.row[tool] = {"seconds": medians([s.seconds for s in timed]), "cpu": medians([s.cpu for s in timed])}
    stages.row["repeats"] = arguments.repeats
    stages.row["status"] = "done"


def medians(runs: list[dict[str, float]]) -> Row:
    """Median of each stage."""
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


TASKS: dict[str, Callable[[Stages, argparse.Namespace], None]] = {
    "ours": alone("ours"),
    "theirs": alone("theirs"),
    "both": both,
}

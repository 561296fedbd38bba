"""Coverage of one model: capture, trace, plan, slim - and whether the slim model is what the masked one is."""

import argparse
import logging
from collections import Counter
from typing import Any

import catalog
import numpy as np
import torch
from process import MEGABYTE, Row, Stages, clock_calls, describe, reset_peak, resident_mb
from torch import nn
from weights import calibrate, flat_outputs, images, largest_difference, masked, randomize

import graphprune as gp
from graphprune.passes.fx import slim as slim_module
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule

#: Largest relative difference of what is called exact: float32, and float64 where rounding hides the answer.
EXACT = 1e-5
EXACT_64 = 1e-9
#: Below this the outputs hardly depend on what was pruned, and agreement says little.
TELLING = 1e-4
#: What `slim` does only to check itself.
VERIFICATION = ("run", "compare_outputs", "_verify_graph")


class Collected(logging.Handler):
    """Keeps the messages of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def coverage(stages: Stages, arguments: argparse.Namespace) -> None:
    """Fill the row with everything that is measured of one model."""
    row = stages.row
    warm_up()
    baseline, _ = resident_mb()
    with stages("build"):
        torch.manual_seed(arguments.seed)
        model, inputs = catalog.build(arguments.suite, arguments.model)
        randomize(model, arguments.seed)
    row["parameters"] = sum(p.numel() for p in model.parameters())
    row["input"] = [list(x.shape) for x in inputs]
    if row["parameters"] > arguments.max_parameters:
        row["status"] = "too big"
        return
    reset_peak()
    log = listen()
    graph, plan, slimmed = prune(stages, model, inputs, arguments)
    _, peak = resident_mb()
    tensors = [*model.parameters(), *model.buffers()]
    row["memory_mb"] = {
        "model": round(sum(t.numel() * t.element_size() for t in tensors) / MEGABYTE, 1),
        "peak": round(peak - baseline, 1),
    }
    row["log"] = [message[:300] for message in log.messages[:4]]
    row["kind"] = "graph" if isinstance(slimmed, CapturedModule) else "module"
    with stages("compare"):
        compare(row, model, masked(model, plan), slimmed, inputs, arguments.seed)
    row["parameters_removed"] = round(share_removed(graph, slimmed), 4)
    row["status"] = verdict(row)


def listen() -> Collected:
    """Collect what the library says: why a captured graph is returned, that a batch size is fixed."""
    collected = Collected()
    logger = logging.getLogger("graphprune")
    logger.setLevel(logging.INFO)
    logger.addHandler(collected)
    return collected


def warm_up() -> None:
    """Pay once for what torch loads at the first export, on a network of two layers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    inputs = (torch.randn(1, 3, 8, 8),)
    graph = gp.trace(model, inputs)
    gp.slim(model, gp.plan(graph, ratio=0.5), inputs, graph=graph)


def prune(
    stages: Stages, model: nn.Module, inputs: tuple[Any, ...], arguments: argparse.Namespace, importance: str = "random"
) -> tuple[gp.ChannelGraph, gp.PruningPlan, nn.Module]:
    """Capture, trace, plan and slim, each timed; verification is counted apart from slimming."""
    with stages("capture"):
        captured = capture(model, inputs, share=True)  # as `gp.trace` does
    with stages("trace"):
        graph = analyze(captured)
    if importance == "random":
        describe_graph(stages.row, graph, arguments.ratio)
    with stages("plan"):
        plan = gp.plan(graph, ratio=arguments.ratio, importance=importance, seed=arguments.seed)
    if importance == "random":
        with stages("calibrate"):
            calibrate(model, plan, inputs, arguments.seed)
    with clock_calls(slim_module, VERIFICATION) as verification:
        before = stages.seconds.get("slim", 0.0), stages.cpu.get("slim", 0.0)
        with stages("slim"):
            slimmed = gp.slim(model, plan, inputs, graph=graph)
        wall, cpu = verification()
    stages.seconds["slim"] = max(before[0], stages.seconds["slim"] - wall)
    stages.cpu["slim"] = max(before[1], stages.cpu["slim"] - cpu)
    stages.seconds["verify"] = stages.seconds.get("verify", 0.0) + wall
    stages.cpu["verify"] = stages.cpu.get("verify", 0.0) + cpu
    return graph, plan, slimmed


def describe_graph(row: Row, graph: gp.ChannelGraph, ratio: float) -> None:
    """What the analysis found: groups, inexact ones with reasons, operators without a rule, frozen channels."""
    row["sets"], row["groups"] = len(graph.sets), graph.n_groups
    row["inexact"] = int((~graph.exact).sum())
    row["unknown"] = dict(graph.unknown)
    reasons = Counter(str(graph.why_inexact(int(group))) for group in np.flatnonzero(~graph.exact))
    row["inexact_reasons"] = [{"reason": reason, "groups": n} for reason, n in reasons.most_common(3)]
    held = sorted(((held_by(graph, frozen), frozen) for frozen in graph.frozen), key=lambda item: -item[0])
    total = max(graph.cost.params(graph.all_kept()), 1)
    row["frozen"] = [
        {
            "reason": frozen.reason,
            "channels": frozen.channels,
            "parameters": round(share / total, 4),
            "of": list(frozen.parameters[:2]),
        }
        for share, frozen in held[:3]
    ]


def held_by(graph: gp.ChannelGraph, frozen: Any) -> int:
    """Elements of the parameters of which output channels are frozen for one reason."""
    return sum(int(np.prod(graph.shapes[name])) for name in frozen.parameters)


def share_removed(graph: gp.ChannelGraph, slimmed: nn.Module) -> float:
    """Share of the parameters that the captured model uses which the slim one has no more."""
    after = {name: p.numel() for name, p in slimmed.named_parameters(remove_duplicate=False)}
    used = graph.front_end.module.named_parameters()
    before, left = 0, 0
    for name, parameter in used:
        before += parameter.numel()
        left += after.get(name, 0)
    return 1 - left / max(before, 1)


def compare(
    row: Row, dense: nn.Module, reference: nn.Module, slimmed: nn.Module, inputs: tuple[Any, ...], seed: int
) -> None:
    """Differences on two fresh random inputs, in float32 and, where that leaves a doubt, in float64."""
    generator = torch.Generator().manual_seed(seed + 1)
    fresh = tuple(images(x.shape, 2, generator) for x in inputs)
    expected = outputs(reference.eval(), fresh)
    row["difference"] = largest_difference(expected, outputs(slimmed, fresh))
    row["effect"] = largest_difference(outputs(dense, fresh), expected)
    row["contrast"] = largest_difference([x[:1] for x in expected], [x[1:] for x in expected])
    if row["difference"] > EXACT / 10:
        try:
            double = tuple(x.double() for x in fresh)
            expected = outputs(reference.double(), double)
            row["difference_float64"] = largest_difference(expected, outputs(slimmed.double(), double))
        except Exception as error:  # some models fix their own precision
            row["float64_error"] = describe(error)["message"][:200]


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors that a model gives."""
    return flat_outputs(model(*inputs))


def verdict(row: Row) -> str:
    """One word for the comparison."""
    if not row["parameters_removed"] > 0:
        return "nothing removed"
    exact = row["difference"] <= EXACT or row.get("difference_float64", 1.0) <= EXACT_64
    if not exact:
        return "different"
    return "exact" if min(row["effect"], row["contrast"]) >= TELLING else "exact, weak test"

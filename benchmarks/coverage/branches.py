"""Whole inner branches of ResNet56 removed: every second block of each stage, in torch and in ONNX.

A block without inner channels adds the same number to every position of a channel (what its last normalization makes
of zero). Two cases are measured: these numbers as they come, which have to stay as one addition, and all of them zero,
where nothing at all may be left of the block.
"""

import argparse
import copy
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from process import Row
from torch import nn
from weights import calibrate, images, largest_difference, masked, randomize

import graphprune as gp
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.models import resnet56

_STAGES, _BLOCKS = 3, 9
_INPUT = (2, 3, 32, 32)


def removed_blocks() -> list[str]:
    """The blocks that go: the second, fourth, ... of each stage, none of which changes the size of the maps."""
    return [f"layer{stage + 1}.{block}" for stage in range(_STAGES) for block in range(1, _BLOCKS, 2)]


def measure(arguments: argparse.Namespace) -> list[Row]:
    """One row a case."""
    return [_case(silent, arguments) for silent in (False, True)]


@torch.no_grad()
def _case(silent: bool, arguments: argparse.Namespace) -> Row:
    torch.manual_seed(arguments.seed)
    model = resnet56().eval()
    randomize(model, arguments.seed)
    inputs = (torch.randn(_INPUT),)
    graph = gp.trace(model, inputs)
    blocks = removed_blocks()
    names = {f"{block}.conv1" for block in blocks}
    inner = [s for s in graph.sets if s.name in names]
    plan = graph.plan(np.isin(np.arange(graph.n_groups), np.concatenate([s.groups for s in inner])))
    calibrate(model, plan, inputs, arguments.seed)
    if silent:
        for block in blocks:
            _silence(model.get_submodule(f"{block}.bn2"))
    slim = gp.slim(model, plan, inputs, graph=graph)
    x = images(torch.Size(_INPUT), 4, torch.Generator().manual_seed(arguments.seed))
    expected = masked(model, plan)(x)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "slim", "pass")}
        gp.export_onnx(copy.deepcopy(model), inputs, files["dense"])
        gp.export_onnx(slim, inputs, files["slim"])
        gp.slim_onnx(files["dense"], files["pass"], plan)
        outputs = {name: torch.from_numpy(_run(files[name], x)) for name in ("slim", "pass")}
        report = gp.benchmark({name: str(files[name]) for name in ("dense", "slim")}, seed=arguments.seed)
        nodes = {name: Counter(node.op_type for node in onnx.load(path).graph.node) for name, path in files.items()}
        costs = {name: onnx_cost(path) for name, path in files.items()}
    calls = [node for node in slim.graph.nodes if node.op == "call_function"]
    operators = Counter(node.target.__name__.partition(".")[0].rstrip("_") for node in calls)
    return {
        "case": "shifts zero" if silent else "shifts as they come",
        "suite": "graphprune",
        "model": "resnet56" + ("-silent" if silent else ""),
        "blocks_removed": blocks,
        "torch": {"convolutions": operators["conv2d"], "additions": operators["add"]},
        "onnx": {
            name: {"Conv": found["Conv"], "Add": found["Add"], "macs": costs[name].macs, "params": costs[name].params}
            for name, found in nodes.items()
        },
        "difference": {
            "slim": largest_difference([expected], [slim(x)]),
            **{f"onnx {name}": largest_difference([expected], [found]) for name, found in outputs.items()},
        },
        "speedup": report["slim"].speedup,
        "speedup_interval": list(report["slim"].speedup_interval),
    }


def _silence(norm: nn.Module) -> None:
    """Make what a normalization gives for zeros zero."""
    for name in ("bias", "running_mean"):
        tensor = getattr(norm, name)
        assert isinstance(tensor, torch.Tensor)
        tensor.zero_()


def _run(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]

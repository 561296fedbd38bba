"""A residual network and a latency model for it that is made up, so that what depends on it is the same everywhere."""

import math
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import graphprune as gp
from graphprune.latency import LatencyModel, LatencyTarget
from graphprune.latency.segments import read_segments
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.onnx.analyze import trace_onnx

BLOCK = 8


class Residual(nn.Module):
    """A stem, two residual blocks and a classifier: a trunk, and inner channels with a way around them."""

    def __init__(self, trunk: int = 32, inner: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, trunk, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(trunk, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, trunk, 3, padding=1))
            for _ in range(2)
        )
        self.head = nn.Linear(trunk, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def example() -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


@lru_cache
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@lru_cache
def graph() -> ChannelGraph:
    return gp.trace(network(), example())


@lru_cache
def _exported() -> bytes:
    with TemporaryDirectory() as folder:
        return gp.export_onnx(network(), example(), Path(folder) / "dense.onnx").read_bytes()


def export(folder: Path) -> Path:
    path = folder / "dense.onnx"
    path.write_bytes(_exported())
    return path


def seconds(lengths: tuple[float, ...]) -> float:
    """A staircase: whole blocks, and three times as long where channels cannot be read in fours."""
    if any(n < 0.5 for n in lengths):
        return 0.0
    time = 1e-6
    for n in lengths:
        time *= math.ceil(n / BLOCK) * (3.0 if n % 4 else 1.0)
    return 1e-6 + time


def staircase_model(graph: ChannelGraph, path: Path) -> LatencyModel:
    """Measurements of the staircase above at all multiples of 4 up to 64, for an exported file."""
    segments = read_segments(trace_onnx(path), graph)
    widths = [0.0, *range(4, 68, 4), 3.0, 5.0, 10.0, 13.0, 30.0]
    samples = {}
    for segment in segments.items:
        if len(segment.axes) == 2:
            points = [(float(a), float(b)) for a in widths for b in widths]
        else:
            points = [(float(a),) for a in widths] if segment.axes else [()]
        samples[segment.kind] = [(point, seconds(point)) for point in points]
    dense = sum(seconds(tuple(a.length([len(s.groups) for s in graph.sets]) for a in s.axes)) for s in segments.items)
    return LatencyModel(LatencyTarget(), BLOCK, segments.items, samples, dense_ms=dense * 1e3, structure="made up")

"""What all networks of the zoo are made with."""

import copy
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.testing import randomize

ZOO: dict[str, type["Net"]] = {}


class Net(nn.Module):
    """A network that knows its inputs; subclasses register themselves under their name."""

    shape: tuple[int, ...] = (2, 3, 8, 8)

    def __init_subclass__(cls) -> None:
        ZOO[cls.__name__] = cls

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Inputs in the model's own precision."""
        dtype = next(self.parameters()).dtype
        generator = torch.Generator().manual_seed(batch)
        return (torch.randn((batch, *self.shape[1:]), generator=generator, dtype=torch.float64).to(dtype),)


def build(name: str, dtype: torch.dtype = torch.float64) -> Net:
    """The network of that name, random, in inference mode."""
    torch.manual_seed(0)
    model = ZOO[name]()
    randomize(model)
    return model.to(dtype)


@functools.cache
def analyzed(name: str) -> tuple["Net", CapturedModule, ChannelGraph]:
    """A network in double precision with its capture and its groups, made once: not to be changed."""
    model = build(name)
    captured = capture(model, model.example_inputs())
    return model, captured, analyze(captured)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def classifier(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def random_removal(
    graph: ChannelGraph, rng: np.random.Generator, share: float = 0.4, *, inexact: bool = False, branches: bool = False
) -> NDArray[np.bool_]:
    """Groups to remove at random, (G,), such that a plan can be made of them.

    Args:
        graph: channel graph.
        rng: source of randomness.
        share: of the groups, about.
        inexact: take any group, not only exact ones.
        branches: also remove whole sets that have a branch around them.
    """
    removed = rng.random(graph.n_groups) < share
    if not inexact:
        removed &= graph.exact
    emptied: set[int] = set()
    for group_set in graph.sets:
        groups = group_set.groups
        if branches and group_set.bypassed and rng.random() < 0.5 and (inexact or graph.exact[groups].all()):
            removed[groups] = True
        if removed[groups].all():
            if branches and graph.flow.fates(frozenset({*emptied, group_set.index})) is not None:
                emptied.add(group_set.index)
            else:
                removed[rng.choice(groups)] = False
    return removed


def traced(name: str):
    """A network of one's own, and its channel graph, which is shared and not to be changed."""
    model, _, graph = analyzed(name)
    return copy.deepcopy(model), graph


def captured_of(name: str) -> CapturedModule:
    return copy.deepcopy(analyzed(name)[1])


def first_of(graph, *sets: int):
    """Flags of the first group of each set."""
    return np.isin(np.arange(graph.n_groups), [graph.sets[i].groups[0] for i in sets])

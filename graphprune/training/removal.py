"""Removing dead groups from a network that is being trained: the same function, the same next steps, less to compute.

A dead group is zero in all its members and stays so. Where its removal changes nothing (`ChannelGraph.exact`) it is cut
out of the captured graph, and what the optimizer remembers is cut alike. What is left of a branch that goes as a whole
stays trainable (`passes.fx.fold.condense_branches`).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.passes.channels.branches import Fate
from graphprune.passes.errors import PlanError
from graphprune.passes.fx.cut import cut_graph, named_tensors
from graphprune.passes.fx.spread import cut_tensor, owned, restore

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Removal", "carry_over", "cut_tensor", "restore"]


class Removal:
    """Cuts the network of a channel graph.

    Args:
        graph: channel groups of the dense network.
        taps: nodes whose results are looked at.
    """

    def __init__(self, graph: "ChannelGraph", taps: list[str]) -> None:
        self.graph = graph
        self.taps = taps

    def present(self, dead: np.ndarray) -> np.ndarray:
        """(n_groups,) mask of what must stay when the groups of `dead` are zero.

        A set that is dead as a whole keeps a group where a branch cannot be condensed without changing what a tap sees.
        """
        gone = dead & self.graph.exact
        for _ in self.graph.sets:
            problem = self._problem(gone)
            if problem is None:
                break
            gone[problem] = False
        return ~gone

    def _problem(self, gone: np.ndarray) -> int | None:
        """A group that must stay after all."""
        emptied = [s for s in self.graph.sets if gone[s.groups].all()]
        if not emptied:
            return None
        try:
            fates = self.graph.fates(gone)
        except PlanError:
            return int(emptied[-1].groups[0])
        steps = {self.graph.flow.steps[number].op.name: fate for number, fate in fates.items()}
        if any(steps.get(tap) in (Fate.HEAD, Fate.CONSTANT) for tap in self.taps):
            return int(emptied[-1].groups[0])
        return None

    def taps_left(self, present: np.ndarray) -> list[str | None]:
        """The taps, with None for those of which no channel is left."""
        fates = self.graph.fates(~present)
        gone = {self.graph.flow.steps[number].op.name for number, fate in fates.items() if fate is Fate.GONE}
        return [None if tap in gone else tap for tap in self.taps]

    def cut(self, present: np.ndarray) -> "CapturedModule":
        """The network with the groups in `present` alone; what its tensors hold is not to be relied on."""
        removed = ~present
        own = named_tensors(self.graph.front_end.module)
        module = cut_graph(self.graph, self.graph.plan(removed), removed, own, trainable=True)
        return owned(module)


@torch.no_grad()
def carry_over(
    graph: "ChannelGraph",
    source: nn.Module,
    memory: torch.optim.Optimizer,
    had: np.ndarray,
    target: nn.Module,
    optimizer: torch.optim.Optimizer,
    has: np.ndarray,
) -> None:
    """Fill a network and its optimizer from those that they were cut out of.

    Args:
        graph: channel groups.
        source: the network before.
        memory: its optimizer.
        had: (n_groups,) groups in `source`.
        target: the network after.
        optimizer: its optimizer, new.
        has: (n_groups,) groups in `target`.
    """
    before, own = named_tensors(source), named_tensors(graph.front_end.module)
    for name, tensor in named_tensors(target).items():
        if name not in own:
            continue  # a constant of the cut, which has the right size already
        held = before[name]
        tensor.copy_(cut_tensor(graph, name, held, had, has))
        for key, value in memory.state.get(held, {}).items():
            if isinstance(value, Tensor) and value.shape == held.shape:
                value = torch.empty_like(tensor).copy_(cut_tensor(graph, name, value, had, has))
            optimizer.state[tensor][key] = value

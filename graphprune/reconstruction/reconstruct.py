"""The whole of it: look at the dense network once, then choose channels, or fit what a plan leaves."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.fx.cut import cut_graph, named_tensors
from graphprune.passes.fx.spread import owned, restore
from graphprune.reconstruction.curves import curves
from graphprune.reconstruction.layers import find_layers
from graphprune.reconstruction.student import Solved, Student
from graphprune.reconstruction.teacher import Seen, Teacher

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Reconstruction"]


class Reconstruction:
    """A dense network and what was seen of it.

    Args:
        graph: channel groups of a torch model.
        images: (number, channels, height, width) what to fit to, in random order.
        positions: of an image and layer that are looked at.
        held: share of the images that strengths are chosen on.
        batch: images at a time.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        images: Tensor,
        *,
        positions: int = 16,
        held: float = 0.2,
        batch: int = 50,
    ) -> None:
        self.graph = graph
        self.layers, self.unfit = find_layers(graph)
        self._number = positions
        first = max(1, min(len(images) - 1, round((1 - held) * len(images))))
        self._batches = [*torch.split(images[:first], batch), *torch.split(images[first:], batch)]
        self._held = -(-first // batch)
        self._seen: dict[str, Seen] = {}

    def look(self, *, moments: bool, progress: Callable[[int, int], None] | None = None) -> None:
        """Run the dense network."""
        self._seen = Teacher(self.graph, self.layers, self._number).watch(
            self._batches, moments=moments, targets=True, progress=progress
        )

    def scores(self) -> np.ndarray:
        """(n_groups,) see `curves`."""
        return curves(self.graph, self.layers, self._seen)

    def fit(
        self, plan: PruningPlan, progress: Callable[[int, int], None] | None = None
    ) -> tuple[dict[str, Tensor], list[Solved]]:
        """State of the dense network that computes what the fitted slim one does, and what became of the layers."""
        graph = self.graph
        removed = graph.removed_by(plan)
        module = owned(cut_graph(graph, plan, removed, named_tensors(graph.front_end.module)))
        env = {node.name: value for node, value in graph.front_end.env.items()}
        keep = {}
        for layer in self.layers:
            dim = 1 if layer.is_conv else env[layer.result].rank - 1
            mask = graph.cuts(env[layer.result], removed).get(dim)
            if mask is not None:
                keep[layer.name] = torch.from_numpy(np.flatnonzero(mask))
        student = Student(module, self.layers, self._seen, self._number, frozenset(plan.removed), keep)
        solved = student.fit(self._batches, self._held, progress)
        return restore(graph, module, ~removed), solved

"""Channels chosen by what their going costs, and what is left fitted in closed form: a result, or a start."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from graphprune.data import Source
from graphprune.passes.channels.plan import PruningPlan
from graphprune.reconstruction.reconstruct import Reconstruction
from graphprune.reconstruction.report import LayerReport, summary
from graphprune.training.start import Start

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.training.student import Student

__all__ = ["ClosedForm"]

logger = logging.getLogger("graphprune")


class ClosedForm:
    """The dense network as it was seen, and what was fitted to that.

    Attributes:
        scores: (n_groups,) what each group costs.
        images: how many were fitted to.
        layers: by number of the student, what became of the layers.

    Args:
        graph: channel groups of the model.
        images: what to fit to.
        seed: of the draws.
        progress: told how many of the batches and layers are done.
        rotates: whether linear trunks may be held in another basis. Not for a student that learns from features: those
            of the teacher are in the old one.
    """

    def __init__(
        self,
        graph: "ChannelGraph",
        images: Source,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
        *,
        rotates: bool = True,
    ) -> None:
        self._graph, self._progress = graph, progress
        self._seen = Reconstruction(graph, images, seed=seed, rotates=rotates)
        self._seen.look(moments=True, progress=progress)
        self.scores: np.ndarray = self._seen.scores()
        self.images = len(self._seen.source)
        self.layers: dict[int, list[LayerReport]] = {}

    def fit(self, number: int, plan: PruningPlan) -> dict[str, Tensor]:
        """State of the dense network with the planned channels zero and the rest fitted, for a student."""
        state, self.layers[number] = self._seen.fit(plan, self._progress)
        logger.info("%s, to %d images", summary(self.layers[number]), self.images)
        return state

    def starts(self, students: "Sequence[Student]") -> list[Start]:
        """What each student of a training begins as: within its budget, by its own draw where there are twins."""
        found = []
        for student in students:
            removed = student.set.choose(self.scores)
            found.append(Start(self.fit(student.number, self._graph.plan(removed)), removed))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "images": self.images,
            "layers": {
                str(number): [vars(layer) for layer in layers] for number, layers in sorted(self.layers.items())
            },
            "text": {str(number): summary(layers) for number, layers in sorted(self.layers.items())},
        }

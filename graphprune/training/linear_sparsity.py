"""The 3-sigma pass: weights of linear layers near their mean become zero, and stay so while the rest learns.

    keep w_ij  iff  | w_ij - mu | >= k sigma          mu, sigma: mean and standard deviation of the layer's weights

So it is the outliers that stay. In a layer with normally distributed weights these are 31.7 % at k = 1, 4.6 % at k = 2
and 0.27 % at k = 3; trained classifiers have heavier tails and keep more. Rows whose output cannot be removed (those of
the network's own outputs) keep their largest weight in any case: a class without one would have a constant answer.

A neuron that nothing reaches, or whose answer nothing reads any more, is dead; the channel analysis finds such ones
(`dead`), and they are removed as any channel is. What is left is single zeros: no structure, and no speed.

Source: Xu, Li, Yuan 2023, J. Zhejiang Univ. (Eng. Sci.) 57(3), where it is applied to the fully connected layers.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphprune.formats.sparse_storage import is_smaller_sparse
from graphprune.freezing import named
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.onnx.slim import dead_groups
from graphprune.training.removal import cut_tensor

if TYPE_CHECKING:
    from graphprune.passes.fx.captured import CapturedModule

logger = logging.getLogger("graphprune")

__all__ = ["LinearSparsity", "clear_", "linear_weights", "outliers"]


class LinearSparsity:
    """Which weights of the linear layers of a network stay.

    Attributes:
        masks: parameter -> bool, True where the weight stays; in the shapes of the dense network.
        dead: (n_groups,) channels that are dead without the others.
        own: (n_groups,) outputs of linear layers alone: what this pass prunes, and no allocation of channels has to.
        layers: the weights that these are outputs of.
    """

    def __init__(self, graph: ChannelGraph, module: "CapturedModule", sigma: float, freeze: Sequence[str] = ()) -> None:
        """Look at the weights of a network.

        Args:
            graph: its channel groups.
            module: the network; it is not modified.
            sigma: k, in standard deviations; 0 keeps everything.
            freeze: patterns (`classifier.*`) of layers that keep all their weights.

        Raises:
            PlanError: a pattern fits nothing.
        """
        self._graph = graph
        frozen = {name for pattern in freeze for name in named(graph, pattern)}
        weights = [name for name in linear_weights(graph) if name not in frozen] if sigma else []
        if sigma and not weights:
            left = " that is not frozen" if frozen else ""
            logger.warning("sigma %g makes nothing sparse: the model has no linear layer%s", sigma, left)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self.masks: dict[str, Tensor] = {}
        for name in weights:
            self.masks[name] = mask = outliers(parameters[name], sigma, self._rows_that_stay(name, parameters[name]))
            if int(mask.sum()) <= len(mask):
                logger.warning(
                    "sigma %g leaves %d of the %d weights of %s, not more than outputs: expect a loss, or lower it",
                    *(sigma, int(mask.sum()), mask.numel(), name),
                )
        self.own = self._produced_by(weights)
        owned = {name for name in weights if self.own[graph.axes.get((name, 0), np.zeros(0, dtype=int))].any()}
        self.layers = [name for name in weights if name in owned]
        self.dead = np.zeros(graph.n_groups, dtype=bool)
        if self.masks:
            sparse = copy.deepcopy(module)
            self.apply_(sparse, graph.all_kept())
            self.dead = dead_groups(analyze(sparse, dead=True)) & graph.exact & self._touched(weights)

    def thinned(self, *, without_dead: bool) -> ChannelGraph:
        """The graph with a cost that counts what is left of each layer, where it will be stored sparse.

        Args:
            without_dead: the count is for networks whose `dead` channels are gone, else for ones that have them.
        """
        present = ~self.dead if without_dead else self._graph.all_kept()
        counted = {}
        for name, mask in self.masks.items():
            left = cut_tensor(self._graph, name, mask, self._graph.all_kept(), present)
            if is_smaller_sparse(int(left.sum()), left.numel()):
                counted[name] = mask.numpy()
        return self._graph.thinned(counted, present)

    def _rows_that_stay(self, name: str, weight: Tensor) -> Tensor:
        ids = self._graph.axes.get((name, 0))
        return torch.ones(len(weight), dtype=torch.bool) if ids is None else torch.from_numpy(ids < 0)

    def _produced_by(self, weights: list[str]) -> np.ndarray:
        """Groups of the sets whose layers are all among these."""
        mask = np.zeros(self._graph.n_groups, dtype=bool)
        for group_set in self._graph.sets:
            matrices = [name for name, _, _ in group_set.outputs if len(self._graph.shapes[name]) > 1]
            if matrices and set(matrices) <= set(weights):
                mask[group_set.groups] = True
        return mask

    def _touched(self, weights: list[str]) -> np.ndarray:
        """Groups that run through one of these: others were dead before, and are left to whoever made them so."""
        mask = np.zeros(self._graph.n_groups + 1, dtype=bool)
        for name in weights:
            for dim in (0, 1):
                mask[self._graph.axes.get((name, dim), np.full(1, -1))] = True
        return mask[:-1]

    def held(self, module: "CapturedModule", present: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """The thinned weights of a network, each with the mask of what stays, in its shape and where it is.

        Args:
            module: the network, dense or with groups removed.
            present: (n_groups,) groups that it has.
        """
        parameters = dict(module.named_parameters(remove_duplicate=False))
        every = self._graph.all_kept()
        return [
            (parameters[name], cut_tensor(self._graph, name, mask, every, present).to(parameters[name].device))
            for name, mask in self.masks.items()
            if name in parameters
        ]

    def apply_(self, module: "CapturedModule", present: np.ndarray) -> None:
        """Set the weights that do not stay to zero, in place. See `held`."""
        clear_(self.held(module, present))

    def describe(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is left of each layer, given the weights of a network: plain data for JSON."""
        return {
            name: {"weights": state[name].numel(), "left": int(torch.count_nonzero(state[name]))}
            for name in self.masks
            if name in state
        }


@torch.no_grad()
def clear_(held: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set the elements of weights to zero that are not in their masks, in place."""
    for weight, mask in held:
        weight.mul_(mask)


def linear_weights(graph: ChannelGraph) -> list[str]:
    """Names of the weights (out, in) of the linear layers of a torch model, in the order of computation."""
    names: dict[str, None] = {}
    for step in graph.flow.steps:
        weight = step.op.inputs.get("weight")
        is_linear = step.rule is not None and step.rule.name == "linear"
        if is_linear and isinstance(weight, Value) and weight.parameter in graph.parameters and weight.rank == 2:
            names[str(weight.parameter)] = None
    return list(names)


def outliers(weight: Tensor, sigma: float, keep_one: Tensor | None = None) -> Tensor:
    """True where a weight is at least `sigma` standard deviations from the mean of all.

    Shapes: weight (out, in); keep_one (out,) rows that keep their largest weight in any case; returns (out, in).
    """
    with torch.no_grad():
        values = weight.detach().double()
        kept = (values - values.mean()).abs() >= sigma * values.std(correction=0)
        if keep_one is not None and values.numel():
            rows = torch.nonzero(keep_one & ~kept.any(1)).flatten()
            kept[rows, values[rows].abs().argmax(1)] = True
    return kept

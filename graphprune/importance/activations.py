"""What the channels of a network compute on images, for the criteria that look at activations.

Looked at are the results of activation functions; where channels run through none, the last result that carries them.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.data.batches import Batch, tensors_of

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["ActivationStatistics", "activation_nodes"]

_FUNCTIONS = ("relu", "hardtanh", "elu", "gelu", "silu", "mish", "hardswish", "sigmoid", "tanh", "softplus")


def activation_nodes(graph: "ChannelGraph", module: "CapturedModule") -> list[str]:
    """Names of the nodes to look at: activation functions first, then what carries the channels left over."""
    names = [node.name for node in module.graph.nodes if node.op == "call_function" and node.name in graph.value_groups]
    functions = {node.name for node in module.graph.nodes if _is_function(node)}
    covered: set[int] = set()
    chosen = []
    for name in [n for n in names if n in functions] + [n for n in reversed(names) if n not in functions]:
        ids = graph.value_groups[name][1]
        groups = set(ids[ids >= 0].tolist())
        if groups - covered if name not in functions else groups:
            chosen.append(name)
            covered |= groups
    return chosen


class ActivationStatistics:
    """Runs a network on images when a criterion asks.

    Args:
        module: the network, dense or with dead groups removed; its mode is kept.
        graph: channel groups of the dense network.
        batches: gives the images, anew for every call.
        present: (n_groups,) groups that `module` still has; by default all.
    """

    def __init__(
        self,
        module: "CapturedModule",
        graph: "ChannelGraph",
        batches: Callable[[], Iterable[Batch]],
        present: np.ndarray | None = None,
    ) -> None:
        self._module = module
        self._graph = graph
        self._batches = batches
        self._present = np.append(graph.all_kept() if present is None else present, True)  # -1 is always there

    @torch.no_grad()
    def sums(
        self, per_image: Callable[[Tensor], Tensor], over_images: Callable[[Tensor], Tensor], most: int | None = None
    ) -> Tensor:
        """Per group, the sum over nodes of a statistic of its channels. See `importance.Activations`."""
        names = activation_nodes(self._graph, self._module)
        total = torch.zeros(self._graph.n_groups + 1)
        for name, features in zip(names, self._look(names, per_image, most), strict=True):
            ids = self._channels(name)
            if features is not None and features.shape[1] == len(ids):  # else part of a branch that went
                where = torch.from_numpy(np.where(ids < 0, self._graph.n_groups, ids))
                total.index_add_(0, where, over_images(features).to(total))
        return total[: self._graph.n_groups]

    def _channels(self, name: str) -> np.ndarray:
        ids = self._graph.value_groups[name][1]
        return ids[self._present[ids]]

    def _look(self, names: list[str], per_image: Callable[[Tensor], Tensor], most: int | None) -> list[Tensor | None]:
        """Per node (images, channels) numbers; None where the channels are no dimension of every image."""
        tapped = self._module.with_taps(names)
        tapped.eval()
        dims = [self._graph.value_groups[name][0] for name in names]
        parts: list[list[Tensor]] = [[] for _ in names]
        seen = 0
        for batch in self._batches():
            batch = batch if most is None else batch[: most - seen]
            for part, dim, features in zip(parts, dims, tapped(*tensors_of(batch))[1], strict=True):
                if dim > 0 and len(features) == len(batch):
                    part.append(per_image(features.movedim(dim, 1).float()))
            seen += len(batch)
            if most is not None and seen >= most:
                break
        return [torch.cat(part) if part else None for part in parts]


def _is_function(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.removeprefix("aten::").rstrip("_")
    return any(name.endswith(function) or name == f"{function}6" for function in _FUNCTIONS)

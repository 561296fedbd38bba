"""Between the network after a cut and the dense one: the tensors of either in the shapes of the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.passes.fx.cut import named_tensors

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["cut_tensor", "owned", "restore"]


def owned(module: "CapturedModule") -> "CapturedModule":
    """The module, with parameters and buffers replaced by copies, in place; tied ones stay tied."""
    copies: dict[int, Any] = {}
    for owner in module.modules():
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for table in tables:
            for leaf, tensor in table.items():
                if id(tensor) not in copies:
                    fresh = tensor.detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    copies[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                table[leaf] = copies[id(tensor)]
    return module


def cut_tensor(graph: "ChannelGraph", name: str, tensor: Tensor, had: np.ndarray, has: np.ndarray) -> Tensor:
    """A tensor shaped as a parameter of a network with the groups `had`, cut to one with the groups `has`."""
    for dim in range(tensor.ndim):
        ids = graph.axes.get((name, dim))
        if ids is not None:
            ids = ids[_there(ids, had)]
            chosen = np.flatnonzero(_there(ids, has))
            if len(chosen) < len(ids):
                tensor = tensor.index_select(dim, torch.from_numpy(chosen).to(tensor.device))
    return tensor


@torch.no_grad()
def restore(graph: "ChannelGraph", module: nn.Module, present: np.ndarray) -> dict[str, Tensor]:
    """State of the dense network that computes what `module` does, removed groups exactly zero.

    Args:
        graph: channel groups of the dense network.
        module: the network without some groups.
        present: (n_groups,) those that it has.
    """
    dense = graph.front_end.module
    canonical: dict[int, str] = {}
    for name, tensor in named_tensors(dense).items():
        canonical.setdefault(id(tensor), name)
    held = named_tensors(module)
    tensors = named_tensors(dense)
    return {
        name: _spread(graph, canonical[id(tensors[name])], tensors[name], held, present) for name in dense.state_dict()
    }


def _spread(graph: "ChannelGraph", name: str, dense: Tensor, held: Mapping[str, Tensor], present: np.ndarray) -> Tensor:
    result = dense.detach().clone(memory_format=torch.contiguous_format)
    kept = []
    for dim, size in enumerate(dense.shape):
        ids = graph.axes.get((name, dim), np.full(size, -1))
        there = _there(ids, present)
        if not there.all():
            result.index_fill_(dim, torch.from_numpy(np.flatnonzero(~there)), 0)
        kept.append(torch.from_numpy(np.flatnonzero(there)))
    if name in held:
        if not kept:
            return held[name].detach().to(result, copy=True)
        result[torch.meshgrid(*kept, indexing="ij")] = held[name].detach().to(result)
    return result


def _there(ids: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Which indices of an axis are there; those without a group always are."""
    return (ids < 0) | present[ids]

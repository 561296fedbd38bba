"""Linear trunks: coupled channels that layers write, sums carry on, and other layers read, with nothing else between.

The blocks of MobileNetV2 and EfficientNet leave such a trunk between them. Only sums, averages over positions and
flattening may lie on the way: they treat all channels alike, so the channels may be mixed by any invertible matrix
where they are written, if the inverse is applied where they are read. An activation, a gate, a depthwise layer or a
norm that reads the trunk tells channels apart, and so does an output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from graphprune.passes.fx.analyze import bind_arguments
from graphprune.reconstruction.layers import Layer

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.channels.sets import GroupSet

__all__ = ["Trunk", "find_trunks"]

aten = torch.ops.aten

_ADDS = (aten.add.Tensor, aten.add_.Tensor)
#: Averages over the last two dimensions.
_POOLS = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)


@dataclass(frozen=True)
class Trunk:
    """A set of channels that may be mixed.

    Attributes:
        index: of the set.
        groups: (n,) its ids, rising; a channel's place is its place here.
        writers: layers that write it, with the (n,) outputs that channels lie at.
        readers: layers that read it, with the (copies, n) rows of `Layer.matrices` that channels lie at; a kernel has
            a copy for each tap.
    """

    index: int
    groups: np.ndarray
    writers: tuple[tuple[Layer, np.ndarray], ...]
    readers: tuple[tuple[Layer, np.ndarray], ...]


def find_trunks(graph: "ChannelGraph", layers: Sequence[Layer]) -> list[Trunk]:
    """The linear trunks of a captured model.

    Args:
        graph: channel groups of a torch model.
        layers: what `find_layers` returned.
    """
    nodes = {node.name: node for node in graph.front_end.module.graph.nodes}
    holders: dict[int, list[tuple[str, int]]] = {}
    for axis, ids in graph.axes.items():
        for index in np.unique(graph.set_of[ids[ids >= 0]]).tolist():
            holders.setdefault(index, []).append(axis)
    found = (_trunk(graph, one, holders.get(one.index, []), layers, nodes) for one in graph.sets)
    return [trunk for trunk in found if trunk is not None]


def _trunk(
    graph: "ChannelGraph",
    one: "GroupSet",
    axes: Sequence[tuple[str, int]],
    layers: Sequence[Layer],
    nodes: Mapping[str, fx.Node],
) -> Trunk | None:
    groups = np.sort(one.groups)
    held, writers, readers = set(axes), [], []
    for layer in layers:
        reads, writes = ((layer.weight, dim) for dim in layer.axes)
        if writes in held:
            at = _places(graph.axes[writes], groups)
            if at is None or len(at) > 1 or layer.groups > 1:
                return None
            writers.append((layer, at[0]))
            vectors = [layer.bias, *(_of_norm(layer))]
            held -= {writes, *((name, 0) for name in vectors if name is not None)}
        if reads in held:
            ids = layer.inputs(graph, graph.shapes[layer.weight])
            at = None if ids is None or layer.groups > 1 else _places(ids, groups)
            if at is None:
                return None
            readers.append((layer, at))
            held.discard(reads)
    if held or not writers or not readers:
        return None
    is_linear = _is_linear([layer for layer, _ in writers], [layer for layer, _ in readers], nodes)
    return Trunk(one.index, groups, tuple(writers), tuple(readers)) if is_linear else None


def _of_norm(layer: Layer) -> list[str | None]:
    norm = layer.norm
    return [] if norm is None else [norm.weight, norm.bias, norm.mean, norm.variance]


def _places(ids: np.ndarray, groups: np.ndarray) -> np.ndarray | None:
    """(copies, n) where each of the groups lies, the first of each in the first row; None where others lie there."""
    if len(ids) % len(groups):
        return None
    order = np.argsort(ids, kind="stable").reshape(len(groups), -1)
    return order.T if (ids[order] == groups[:, None]).all() else None


def _is_linear(writers: Sequence[Layer], readers: Sequence[Layer], nodes: Mapping[str, fx.Node]) -> bool:
    """Is there nothing on the way from the writers to the readers that treats channels differently?"""
    readers_at = {layer.name: layer for layer in readers}
    #: Dimension of the channels.
    seen: dict[fx.Node, int] = {}
    waiting = [(nodes[w.result], 1 if w.is_conv else nodes[w.result].meta["val"].ndim - 1) for w in writers]
    while waiting:
        node, dim = waiting.pop()
        if seen.setdefault(node, dim) != dim:
            return False
        for user in node.users:
            reader = readers_at.get(user.name)
            if reader is not None and reader.source == node.name:
                if dim != (1 if reader.is_conv else node.meta["val"].ndim - 1):
                    return False
                continue
            after = _channels_after(user, node, dim)
            if after is None:
                return False
            if user not in seen:
                waiting.append((user, after))
    whole = all(source in seen for node in seen if node.target in _ADDS for source in node.all_input_nodes)
    return whole and all(nodes[reader.source] in seen for reader in readers)


def _channels_after(user: fx.Node, source: fx.Node, dim: int) -> int | None:
    """The dimension of the channels in what an operator gives, None for one that may tell them apart."""
    rank = source.meta["val"].ndim
    if user.target in _ADDS:
        same = all(isinstance(a, fx.Node) and a.meta["val"].ndim == rank for a in user.args)
        return dim if same and len(user.args) == 2 else None
    if user.target in _POOLS:
        return dim if dim < rank - 2 else None
    if user.target not in (aten.mean.dim, aten.flatten.using_ints):
        return None
    bound: dict[str, Any] = bind_arguments(user)
    if user.target is aten.flatten.using_ints:
        start, end = (bound.get(name, default) % rank for name, default in (("start_dim", 0), ("end_dim", -1)))
        return dim if start >= dim and (end == rank - 1 or start > dim) else None
    over = bound.get("dim")
    if not over or any(d % rank == dim for d in over):
        return None
    return dim if bound.get("keepdim") else dim - sum(d % rank < dim for d in over)

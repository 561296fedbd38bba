"""What every set of channels loses at every width, from one elimination: scores that policies can weigh.

Sets that meet in one layer are eliminated together. The costs of a set in the order of its elimination are made to rise
by pooling neighbours, so that scores give back that order, and their sums the costs.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from torch import Tensor

from graphprune.passes.fx.cut import named_tensors
from graphprune.reconstruction.elimination import Reader, eliminate
from graphprune.reconstruction.layers import Layer
from graphprune.reconstruction.teacher import Seen

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["curves", "folded", "rising"]

_APART = 1e-9  # share of the largest score by which neighbours in an order differ at least


def curves(
    graph: "ChannelGraph",
    layers: Sequence[Layer],
    seen: Mapping[str, Seen],
    rotated: Mapping[int, np.ndarray],
    first: float = 1.0,
) -> np.ndarray:
    """(n_groups,) scores: of a set, the k that go first lose together what their elimination cost.

    Args:
        graph: channel groups of a torch model.
        layers: what reads them.
        seen: what was seen of the layers, with second moments.
        rotated: by set, what its channels cost one by one in the basis that it can be held in, where there is one.
        first: what an error of the first layer counts beside one of the last; see `Seen.worth`.
    """
    scores = np.zeros(graph.n_groups)
    readers = _readers(graph, layers, seen, first)
    saved = graph.cost.macs_marginal(graph.all_kept())
    for sets, own in _meeting(graph, readers):
        groups = np.concatenate([graph.sets[index].groups for index in sets])
        if not own:
            continue
        order = eliminate([reader for _, reader in own], groups, saved[groups])
        for index in sets:
            of_set = [(group, cost) for group, cost in order if graph.set_of[group] == index]
            costs = np.array([cost for _, cost in of_set])
            if index in rotated:
                costs = _lower(costs, np.sort(rotated[index]))
            scores[[group for group, _ in of_set]] = rising(costs)
    _fill_unread(graph, scores, readers)
    return np.maximum(np.nan_to_num(scores, nan=0.0, posinf=1e30), 0.0)


def rising(costs: np.ndarray) -> np.ndarray:
    """The costs of an order, pooled where they fall: never falling, with sums that are never above theirs.

    The greatest convex curve under the sums of the costs (pool adjacent violators).
    """
    pools: list[tuple[float, int]] = []
    for cost in costs.tolist():
        pool = (cost, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            last = pools.pop()
            pool = (last[0] + pool[0], last[1] + pool[1])
        pools.append(pool)
    found = np.array([total / number for total, number in pools for _ in range(number)])
    # A hair apart, so that an order among equals is the one of the elimination.
    return found + _APART * float(found.max(initial=0.0)) * np.arange(len(found))


def _lower(*several: np.ndarray) -> np.ndarray:
    """Costs one by one whose sums are the least of theirs.

    In another basis the sums are bounds from above: they know nothing of what readers see at several positions at once.
    """
    return np.diff(np.min([np.cumsum(costs) for costs in several], axis=0), prepend=0.0)


def folded(layer: Layer, tensors: Mapping[str, Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """What a layer does, with the norm behind it: (groups, rows, outputs) and (groups, outputs) of a group, float64."""
    weight = layer.matrices(tensors[layer.weight].detach(), groups).double()
    bias = weight.new_zeros(len(weight), weight.shape[2])
    if layer.bias is not None:
        bias = tensors[layer.bias].detach().double().reshape(bias.shape)
    if layer.norm is None:
        return weight, bias
    scale = norm_scale(layer, tensors).reshape(bias.shape)
    mean = tensors[layer.norm.mean].double().reshape(bias.shape)
    shift = 0.0 if layer.norm.bias is None else tensors[layer.norm.bias].detach().double().reshape(bias.shape)
    return weight * scale[:, None], (bias - mean) * scale + shift


def norm_scale(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """(outputs,) what the norm behind a layer multiplies its result by."""
    assert layer.norm is not None
    scale = (tensors[layer.norm.variance].double() + layer.norm.epsilon).rsqrt()
    return scale if layer.norm.weight is None else scale * tensors[layer.norm.weight].detach().double()


def _readers(
    graph: "ChannelGraph", layers: Sequence[Layer], seen: Mapping[str, Seen], first: float
) -> list[tuple[frozenset[int], Reader]]:
    """The sets that each layer reads, and what it costs to take channels from it."""
    tensors = named_tensors(graph.front_end.module)
    found = []
    for layer in layers:
        shape, held = tensors[layer.weight].shape, seen[layer.name]
        ids = layer.inputs(graph, shape)
        if ids is None or held.second is None or not (ids >= 0).any():
            continue
        weight, _ = folded(layer, tensors, layer.groups)
        weight = weight * held.worth(first) ** 0.5
        second = held.second.centred()
        if not held.is_by_tap and layer.groups == 1:
            taps = shape[2:].numel()
            ids = ids[: len(ids) // taps]
            weight = weight.reshape(1, taps, len(ids), -1).permute(0, 2, 1, 3).flatten(2)
        sets = frozenset(graph.set_of[ids[ids >= 0]].tolist())
        found += [(sets, Reader(second[g], weight[g], ids)) for g in range(len(weight))]
    return found


def _meeting(
    graph: "ChannelGraph", readers: Sequence[tuple[frozenset[int], Reader]]
) -> list[tuple[list[int], list[tuple[frozenset[int], Reader]]]]:
    """Sets that some layer reads together, with everything that reads them."""
    links = nx.Graph()
    links.add_nodes_from(range(len(graph.sets)))
    for sets, _ in readers:
        first = min(sets)
        links.add_edges_from((first, other) for other in sets if other != first)
    return [
        (sorted(part), [entry for entry in readers if entry[0] & part])
        for part in sorted(nx.connected_components(links), key=min)
    ]


def _fill_unread(graph: "ChannelGraph", scores: np.ndarray, readers: Sequence[tuple[frozenset[int], Reader]]) -> None:
    """Channels that no such layer reads are worth as much for their weights as the others are in the mean."""
    read = np.zeros(len(graph.sets), dtype=bool)
    for sets, _ in readers:
        read[list(sets)] = True
    unread = ~read[graph.set_of]
    if not unread.any():
        return
    tensors = named_tensors(graph.front_end.module)
    energy = np.zeros(graph.n_groups + 1)
    for (name, dim), ids in graph.axes.items():
        if name in graph.parameters:
            squares = tensors[name].detach().double().square()
            np.add.at(energy, ids, squares.sum([d for d in range(squares.ndim) if d != dim]).numpy())
    energy = energy[:-1]
    known = scores[~unread].sum() / max(energy[~unread].sum(), 1e-30) if (~unread).any() else 1.0
    scores[unread] = energy[unread] * (known or 1.0)

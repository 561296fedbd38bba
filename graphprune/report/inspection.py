"""What a channel graph says, as plain data: sets of coupled channels, what they cost, and what is frozen."""

import re
from typing import Any

import numpy as np

from graphprune.formats.onnx_cost import OnnxCost
from graphprune.passes.channels.graph import ChannelGraph, GroupSet
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.names import layer_of

__all__ = ["describe_graph"]


def describe_graph(graph: ChannelGraph, counted: OnnxCost | None = None) -> dict[str, Any]:
    """Return what can be removed from a model, what it would save, and what cannot be removed and why.

    `macs_share` and `params_share` of a set are what the model would lose without all of its channels; the sets share
    layers (one's outputs are another's inputs), so the shares of all sets add up to more than 1.

    Args:
        graph: the channels of the model.
        counted: the cost of its file, where there is one: that of parts that the analysis does not see is in it.
    """
    every = graph.all_kept()
    macs, params = graph.cost.macs(every), graph.cost.params(every)
    if counted is not None:
        macs, params = max(macs, counted.macs), max(params, counted.params)
    least = _smallest(graph)
    left = {unit: _left(graph, least, unit, total) for unit, total in (("macs", macs), ("params", params))}
    return {
        "macs": round(macs),
        "params": params,
        "groups": graph.n_groups,
        "least_macs_share": left["macs"],
        "least_params_share": left["params"],
        "sets": [_describe_set(graph, group_set, macs, params) for group_set in graph.sets],
        "frozen": [
            {"reason": f.reason, "channels": f.channels, "parameters": list(f.parameters)} for f in graph.frozen
        ],
        "unknown_operators": dict(graph.unknown),
        "uncounted": list(graph.uncounted if counted is None else counted.uncounted),
    }


def _left(graph: ChannelGraph, kept: Mask, unit: str, total: float) -> float:
    """The share of a cost that is left when some groups stay, of the total."""
    count = graph.cost.macs if unit == "macs" else graph.cost.params
    return 1 - (count(graph.all_kept()) - count(kept)) / total if total else 1.0


def _describe_set(graph: ChannelGraph, group_set: GroupSet, macs: float, params: int) -> dict[str, Any]:
    kept = graph.all_kept()
    kept[group_set.groups] = False
    weights = [name for name, _, _ in group_set.outputs if len(graph.shapes[name]) > 1]
    layers = list(dict.fromkeys(map(layer_of, weights)))
    one = int(group_set.groups[0])
    return {
        "name": group_set.name,
        "channels": len(group_set.groups),
        "indices_per_channel": max((each for _, _, each in group_set.outputs), default=1),
        "members": [{"parameter": name, "dim": dim, "indices": each} for name, dim, each in group_set.members],
        "layers": layers or list(group_set.layers),
        "macs_share": 1 - _left(graph, kept, "macs", macs),
        "params_share": 1 - _left(graph, kept, "params", params),
        "exact": bool(graph.exact[one]),
        "why_inexact": graph.why_inexact(one),
        "bypassed": group_set.bypassed,
    }


def _smallest(graph: ChannelGraph) -> np.ndarray:
    """Mask of what is kept when everything goes that may: one channel of every set that has no branch around it."""
    kept = ~graph.exact
    for group_set in graph.sets:
        if not group_set.bypassed and not kept[group_set.groups].any():
            kept[group_set.groups[0]] = True
    return kept


def summarize(names: list[str], what: str = "layers") -> str:
    """Names with their numbers folded: layer1.*.conv2 (9 layers).

    Example:
        >>> summarize(["conv1", "layer1.0.conv2", "layer1.1.conv2"])
        'conv1, layer1.*.conv2 (3 layers)'
    """
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(name)
    shown = [pattern if len(found) > 1 else found[0] for pattern, found in patterns.items()]
    if len(shown) > 6:
        shown = [*shown[:5], "..."]
    return ", ".join(shown) + (f" ({len(names)} {what})" if len(names) > 1 else "")

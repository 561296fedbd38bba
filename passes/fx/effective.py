"""The weights that a captured graph computes from its parameters and buffers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from graphprune.passes.channels.computed_weights import ComputedWeights, collect
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.operators import is_random
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import FxFrontEnd
from graphprune.passes.fx.cut import named_tensors

__all__ = ["computed_weights"]


def computed_weights(graph: ChannelGraph) -> ComputedWeights:
    """What the layers of a captured graph read that is computed from parameters and buffers."""
    front: FxFrontEnd = graph.front_end
    tensors = named_tensors(front.module)
    known: dict[fx.Node, tuple[Any, frozenset[str]]] = {}

    def numbers(node: fx.Node) -> tuple[Any, frozenset[str]]:
        if node not in known:
            known[node] = _evaluated(node)
        return known[node]

    def _evaluated(node: fx.Node) -> tuple[Any, frozenset[str]]:
        if node.op == "get_attr":
            name = str(node.target)
            return tensors.get(name), frozenset({name})
        if node.op != "call_function" or is_random(str(node.target)):
            return None, frozenset()
        given = {item: numbers(item) for item in node.all_input_nodes}
        read = frozenset().union(*(names for _, names in given.values()))
        if any(found is None for found, _ in given.values()):
            return None, read
        arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda item: given[item][0])
        with torch.no_grad():
            return node.target(*arguments, **named), read  # type: ignore[operator]

    def real(node: fx.Node, read: set[str]) -> torch.Tensor | None:
        found, names = numbers(node)
        read |= names
        return found if isinstance(found, torch.Tensor) and found.is_floating_point() else None

    as_they_are = {str(node.target) for node, _, _ in _read(front) if node.op == "get_attr"}
    computed = ((node, name, value) for node, name, value in _read(front) if node.op != "get_attr")
    return collect(graph, computed, real, lambda name: name in as_they_are)


def _read(front: FxFrontEnd) -> Iterator[tuple[fx.Node, str, Value]]:
    """Constant operands of operators whose results are not constant."""
    for node, found in front.env.items():
        results = found if isinstance(found, list) else [found]
        if node.op != "call_function" or all(value.constant for value in results if isinstance(value, Value)):
            continue
        for item in node.all_input_nodes:
            known = front.env.get(item)
            if isinstance(known, Value) and known.constant:
                yield item, item.name, known

"""Running a captured graph node by node, over batches that are all at the same node, or batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.data.batches import Batch, tensors_of
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.fold import attribute
from graphprune.reconstruction.batches import Again, Batches, Kept

__all__ = ["constants", "deaths", "evaluate", "of_batches", "prepared"]


def prepared(images: Tensor) -> Tensor:
    """Images in the memory layout in which convolutions, and rows taken from their results, are quick."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def arguments(graph: fx.Graph, batch: Batch) -> dict[fx.Node, Tensor]:
    """Input of a graph -> what it gets of a batch."""
    nodes = (node for node in graph.nodes if node.op == "placeholder")
    return {node: prepared(tensor) for node, tensor in zip(nodes, tensors_of(batch), strict=True)}


def deaths(graph: fx.Graph, looks: Sequence[tuple[fx.Node, fx.Node]] = ()) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose results nobody asks for after it.

    Args:
        graph: the graph.
        looks: (node, later node): at the later one, the result of the former is asked for as well.
    """
    asked: dict[fx.Node, list[fx.Node]] = {}
    for source, node in looks:
        asked.setdefault(node, []).append(source)
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in (*node.all_input_nodes, *asked.get(node, ())):
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        found.setdefault(node, []).append(source)
    return found


def constants(module: CapturedModule) -> dict[fx.Node, Any]:
    """Parameters, buffers and literals by their nodes."""
    found: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            try:
                found[node] = attribute(module, node).detach()
            except AssertionError:  # no tensor
                path, _, leaf = str(node.target).rpartition(".")
                found[node] = getattr(module.get_submodule(path), leaf)
    return found


def evaluate(node: fx.Node, env: Mapping[fx.Node, Any], is_kept: bool) -> Any:
    """What an operator gives: once, or where one of its inputs is `Batches`, for every batch."""
    assert callable(node.target)
    inputs = {source: env[source] for source in node.all_input_nodes}
    counts = {len(value) for value in inputs.values() if isinstance(value, Batches)}
    if not counts:
        return node.target(*fx.map_arg(node.args, env.__getitem__), **fx.map_arg(node.kwargs, env.__getitem__))

    def one(number: int) -> Any:
        def held(source: fx.Node) -> Any:
            value = inputs[source]
            return value[number] if isinstance(value, Batches) else value

        return node.target(*fx.map_arg(node.args, held), **fx.map_arg(node.kwargs, held))  # type: ignore[operator]

    return of_batches(node, one, counts.pop(), is_kept)


def of_batches(node: fx.Node, one: Callable[[int], Any], count: int, is_kept: bool) -> Batches:
    """The results of a node, computed now or when they are asked for."""
    return Kept(map(one, range(count))) if is_kept else Again(one, count, keeps_last=len(node.users) > 1)

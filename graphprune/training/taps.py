"""Where a student's features are compared with its teacher's: tap points, found on the captured graph by shapes alone.

1. The spine of a network is the chain of activations that every path from input to output passes through (the
   dominators of the output). A tap is the last one before each change of spatial resolution along the spine.
2. A network without such points, as a U-Net with skip connections, is tapped at the last tensor of each resolution
   that some operator takes to another resolution.
3. The input of the classifier: of the last linear or convolution before each output.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from graphprune.passes.fx.analyze import concrete

_MAX_TAPS = 8
_LAST_OPERATORS = frozenset(
    {
        "linear",
        "addmm",
        "mm",
        "matmul",
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    }
)


def find_taps(graph: fx.Graph) -> list[str]:
    """Names of the nodes to compare features at, in the order of the graph; empty if there is nothing to compare.

    Args:
        graph: a captured ATen graph whose nodes carry `meta["val"]`.
    """
    batch = _batch(graph)
    learned = {node: None for node in _learned(graph) if _has_samples_first(node, batch)}
    spine = [node for node in _spine(graph) if node in learned and not _is_dropout(node)]
    taps = {a for a, b in pairwise(spine) if _spatial(a) and _spatial(a) != _spatial(b)}
    heads = {node for node in map(_before_dropout, _classifier_inputs(graph)) if node in learned}
    if len(taps) < 2:
        taps |= _resolution_changes(learned)
    ordered = [node for node in graph.nodes if node in taps | heads]
    if len(ordered) > _MAX_TAPS:  # evenly over the depth
        picks = torch.linspace(0, len(ordered) - 1, _MAX_TAPS).round().long().tolist()
        ordered = [ordered[i] for i in picks]
    return [node.name for node in ordered]


def _batch(graph: fx.Graph) -> Any:
    """Size of the batch, a symbol where it may vary; None for a network without inputs that have one."""
    values = (_value(node) for node in graph.nodes if node.op == "placeholder")
    return next((value.shape[0] for value in values if value is not None and value.ndim > 1), None)


def _has_samples_first(node: fx.Node, batch: Any) -> bool:
    """Features are compared sample by sample; some layouts have the channels in the first dimension, too."""
    value = _value(node)
    if value is None or not value.ndim or batch is None:
        return False
    size = value.shape[0]  # what is made of a symbol is one
    return isinstance(size, int) == isinstance(batch, int) and concrete(size) == concrete(batch)


def _value(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def _spatial(node: fx.Node) -> tuple[Any, ...]:
    """Spatial size of an activation (batch, channels, *spatial); empty for one without, or of one position."""
    value = _value(node)
    size = tuple(value.shape[2:]) if value is not None and value.ndim >= 3 else ()
    return () if all(isinstance(s, int) and s == 1 for s in size) else size


def _output_nodes(graph: fx.Graph) -> list[fx.Node]:
    (output,) = (node for node in graph.nodes if node.op == "output")
    return list(output.all_input_nodes)


def _learned(graph: fx.Graph) -> dict[fx.Node, None]:
    """Activations that are computed from the input with the help of a parameter, in the order of the graph."""
    from_input: set[fx.Node] = set()
    from_weight: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "placeholder" or any(n in from_input for n in sources):
            from_input.add(node)
        if any(n.op == "get_attr" or n in from_weight for n in sources):
            from_weight.add(node)
    return {n: None for n in graph.nodes if n in from_input and n in from_weight and _value(n) is not None}


def _spine(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that every path from an input to an output passes through, in the order of the graph.

    In topological order, a node is one of them exactly if no edge of the data flow jumps over it.
    """
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    flow = _between(graph)
    farthest = 0  # how far the edges of the nodes seen so far reach
    spine: list[fx.Node] = []
    for i, node in enumerate(nodes):
        if node not in flow:
            continue
        if farthest <= i and node.op == "call_function":
            spine.append(node)
        farthest = max([farthest, *(position[user] for user in node.users if user in flow)])
    return spine


def _between(graph: fx.Graph) -> set[fx.Node]:
    """Nodes on a path from an input to the output, the output node included."""
    forward: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in forward for n in node.all_input_nodes):
            forward.add(node)
    backward: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output" or any(user in backward for user in node.users):
            backward.add(node)
    return forward & backward


def _resolution_changes(learned: dict[fx.Node, None]) -> set[fx.Node]:
    """Per resolution, the last tensor that some operator takes to another resolution; only among true feature maps."""
    last: dict[tuple[Any, ...], fx.Node] = {}
    for node in learned:
        size = _spatial(node)
        if size and any(_spatial(user) and _spatial(user) != size for user in node.users):
            last[tuple(str(s) for s in size)] = node
    return set(last.values())


def _classifier_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The activation that the last linear or convolution before each output takes."""
    found: list[fx.Node] = []
    for output in _output_nodes(graph):
        queue: Sequence[fx.Node] = [output]
        seen: set[fx.Node] = set()
        while queue:  # breadth first, so that the operator nearest to the output is met first
            ends = [n for n in queue if _operator(n) in _LAST_OPERATORS]
            if ends:
                found.extend(n for end in ends for n in end.all_input_nodes[:1])
                break
            seen.update(queue)
            queue = [n for node in queue for n in node.all_input_nodes if n not in seen and n.op == "call_function"]
    return found


def _is_dropout(node: fx.Node) -> bool:
    return "dropout" in _operator(node)


def _before_dropout(node: fx.Node) -> fx.Node:
    """What dropout is applied to: the random part of a feature is nothing to learn."""
    while _is_dropout(node):
        node = node.all_input_nodes[0]
    return node


def _operator(node: fx.Node) -> str:
    target = node.target
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else ""

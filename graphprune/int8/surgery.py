"""What is done to a graph before and behind onnxruntime's quantizer, for what that does not know of."""

import heapq
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from graphprune.int8.layers import names_read
from graphprune.passes.onnx.plain_layers import channel_axis

__all__ = ["add_biases", "axes_in_groups", "remove_unused", "separate", "sort_nodes", "without_biases"]


def separate(graph: onnx.GraphProto, floats: set[str]) -> None:
    """Give layers that stay in float32 copies of the weights that they share with others: these become integers."""
    shared = {name for node in graph.node if node.name not in floats for name in node.input}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for at, name in enumerate(node.input if node.name in floats else ()):
            if name in shared and name in stored:
                copied = graph.initializer.add()
                copied.CopyFrom(stored[name])
                copied.name = node.input[at] = f"{name}_of_{node.name}"


def without_biases(graph: onnx.GraphProto, transposed: Sequence[onnx.NodeProto]) -> dict[str, TensorProto]:
    """Take the biases from transposed convolutions, and return them by the name of the node.

    There are no integer kernels for these, so nothing is won by a rounded bias; and the quantizer wants one scale of
    the kernel for every number of it, which there is not with groups.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in transposed:
        if len(node.input) > 2 and node.input[2] in stored:
            found[node.name] = TensorProto()
            found[node.name].CopyFrom(stored[node.input[2]])
            del node.input[2:]
    return found


def add_biases(graph: onnx.GraphProto, biases: Mapping[str, TensorProto]) -> None:
    """Give nodes biases of their own."""
    for node in graph.node:
        if (bias := biases.get(node.name)) is not None:
            bias.name = f"{bias.name}_of_{node.name}"
            node.input.append(bias.name)
            graph.initializer.append(bias)


def axes_in_groups(transposed: Sequence[onnx.NodeProto]) -> dict[str, list[dict[str, int]]]:
    """The dimension with a scale each, for kernels of which the quantizer takes another."""
    found = {}
    for node in transposed:
        axis = channel_axis(node.op_type, {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT})
        if axis == 0:
            found[node.input[1]] = [{"axis": axis}]
    return found


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove literals that no node reads, and no body of one."""
    used = {name for node in graph.node for name in names_read(node)} | {value.name for value in graph.output}
    kept: Sequence[TensorProto] = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring the nodes into an order in which each stands behind all that it reads, its bodies included.

    The quantizer's own sorting does not look into bodies. Such a graph has no circles: it has been loaded before.
    """
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = {at: {makers[name] for name in names_read(node) if name in makers} for at, node in enumerate(graph.node)}
    readers: dict[int, list[int]] = {}
    for at, before in needs.items():
        for maker in before:
            readers.setdefault(maker, []).append(at)
    ready = [at for at, before in needs.items() if not before]  # those first that stood first
    order = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers.get(at, []):
            needs[reader].discard(at)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    nodes = [onnx.NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)

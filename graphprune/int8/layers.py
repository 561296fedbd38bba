"""The layers of a graph: nodes with weights of their own, what runs in one kernel with each, and which stay in float.

Layers that compute in another type than float32, and those in bodies of If, Loop and Scan, stay as they are.
"""

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

__all__ = ["LAYERS", "floats_of", "layers_of", "names_read", "nodes_of_layers", "nodes_that_stay"]

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What the float kernels of a layer compute along with it.
_FUSED = frozenset({"Add", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_OTHER_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def layers_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes with weights of their own that may be in int8."""
    return tuple(nodes_of_layers(model.graph))


def floats_of(model: onnx.ModelProto) -> dict[str, str]:
    """Layers with weights of their own that stay as they are, each with the reason."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        kind = next((kinds[n] for n in node.input[:2] if kinds.get(n) in _OTHER_FLOATS), None)
        if node.op_type in LAYERS and kind is not None:
            found[node.name] = f"computes in {TensorProto.DataType.Name(kind).lower()}"
        if node.op_type in _RECURRENT:
            found[node.name] = f"{node.op_type} has no int8"
        for graph in _bodies(node):
            found.update(dict.fromkeys(_layers_inside(graph, kinds), f"is in a body of '{node.name}'"))
    return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of an If, Loop or Scan."""
    return [graph for a in node.attribute if a.type in _BODIES for graph in ([a.g] if a.HasField("g") else a.graphs)]


def _layers_inside(graph: onnx.GraphProto, outside: Mapping[str, int]) -> Iterator[str]:
    """Names of layers in a body, and in those within it; those without a name go by what they give."""
    stored = {*outside, *(tensor.name for tensor in graph.initializer)}
    stored |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type in LAYERS and stored & {*node.input[:2]}:
            yield node.name or node.output[0]
        for inner in _bodies(node):
            yield from _layers_inside(inner, dict.fromkeys(stored, 0))


def nodes_of_layers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Names of the nodes of every layer with weights: itself, and what is fused with it as nobody else reads it."""
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type not in LAYERS or not stored & {*node.input[:2]}:
            continue
        found[node.name], last = [node.name], node
        while len(after := readers.get(last.output[0], [])) == 1 and last.output[0] not in outputs:
            last = after[0]
            if last.op_type not in _FUSED or last.name in taken:
                break
            found[node.name].append(last.name)
            taken.add(last.name)
    return found


def nodes_that_stay(model: onnx.ModelProto, endless: frozenset[str]) -> dict[str, str]:
    """Names of nodes that read or give what cannot be in int8; with the name of a value without ends, if it is one."""
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        names = [*node.input, *node.output]
        bad = next((name for name in names if name in endless), "")
        if bad or any(kinds.get(name) in _OTHER_FLOATS for name in names):
            found[node.name] = bad
    return found


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, its bodies included."""
    yield from node.input
    for graph in _bodies(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from names_read(inner)

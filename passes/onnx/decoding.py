"""What follows the last layers of an ONNX graph: how their numbers become answers, and the part of it that selects.

    image -> layers with weights -> raw head -> decoding -> outputs
                                                  `-> selection: NonMaxSuppression, TopK, NonZero, ArgMax, >, ...

A selection is discrete. It gives few of the numbers that enter it, an index, or nothing at all, and the last digit of
one number may turn it over. So what enters it says more about a network than what comes out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

__all__ = ["DISCRETE", "LAYERS", "ROWS", "Selection", "decoding_nodes", "find_selection", "reads", "selecting_part"]

#: Operators that pick rows: how many come out, or in what order, depends on the numbers.
ROWS = frozenset({"NonMaxSuppression", "TopK", "NonZero", "Unique", "Compress"})
#: Operators whose result jumps, or is one of many numbers.
DISCRETE = ROWS | frozenset(
    [
        *"ArgMax ArgMin Greater GreaterOrEqual Less LessOrEqual Equal Round Floor Ceil Sign Hardmax".split(),
        "ReduceMax",
        "ReduceMin",
    ]
)
#: Operators that compute with weights.
LAYERS = frozenset(
    "Conv ConvTranspose Gemm MatMul ConvInteger MatMulInteger QLinearConv QLinearMatMul DeformConv LSTM GRU RNN Einsum "
    "FusedConv FusedGemm FusedMatMul NhwcFusedConv QGemm MatMulNBits MatMulIntegerToFloat DynamicQuantizeMatMul".split()
)
_KNOWN = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_SIZES = frozenset({"Shape", "Size"})
_COPIES = frozenset({"Identity"})  # one more or less of them changes nothing


@dataclass(frozen=True)
class Selection:
    """The last part of a graph that selects: everything behind its first discrete operator, where no layer follows.

    Attributes:
        graph: the graph.
        nodes: its operators, from the outputs backward, so that the order of branches in the file is of no account.
        enters: for every number of one of `nodes` (Identity is not counted) and place of an input, the value from the
            rest of the graph that is read there: one that depends on the numbers of the graph's inputs.
        sizes: values that it reads which depend on the sizes of the inputs alone.
        outputs: those outputs of the graph that come out of it.
    """

    graph: onnx.GraphProto
    nodes: tuple[onnx.NodeProto, ...]
    enters: Mapping[tuple[int, int], str]
    sizes: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def fronts(self) -> tuple[str, ...]:
        """The values that enter, each once."""
        return tuple(dict.fromkeys(self.enters.values()))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The operators, in their order: what tells whether two graphs select in the same way."""
        return tuple(f"{node.domain}.{node.op_type}" for node in self.nodes if not _is(node, _COPIES))

    @cached_property
    def by_kind(self) -> dict[tuple[str, int, int, int], str]:
        """`enters` by operator, how many of its kind there are, which of them it is, and place."""
        total, seen = Counter(self.kinds), Counter[str]()
        found = {}
        for at, kind in enumerate(self.kinds):
            found.update({(kind, total[kind], seen[kind], p): name for (n, p), name in self.enters.items() if n == at})
            seen[kind] += 1
        return found

    def described(self, entering: Mapping[str, str]) -> list[tuple[Any, ...]] | None:
        """Operators, their settings, what they read and the outputs: two that are the same compute the same.

        Args:
            entering: what to call the values that enter.

        Returns:
            None where a literal is computed, or is not in the message.
        """
        literals = {tensor.name: tensor for tensor in self.graph.initializer}
        literals |= {node.output[0]: node.attribute[0].t for node in self.graph.node if node.op_type == "Constant"}
        places = {name: (at, out) for at, node in enumerate(self.nodes) for out, name in enumerate(node.output) if name}
        found: list[tuple[Any, ...]] = []
        for node in self.nodes:
            read: list[Any] = []
            for name in node.input:
                tensor = literals.get(name)
                if name in places or name in entering or not name:
                    read.append(places.get(name, entering.get(name, "")))
                elif tensor is None or not tensor.data_type or tensor.data_location == TensorProto.EXTERNAL:
                    return None
                else:
                    array = onnx.numpy_helper.to_array(tensor)
                    read.append((str(array.dtype), array.shape, array.tobytes()))
            settings = sorted(attribute.SerializeToString() for attribute in node.attribute)
            if list(_bodies(node)):
                return None
            found.append((node.domain, node.op_type, tuple(settings), tuple(read)))
        found.append(tuple(places[value.name] for value in self.graph.output if value.name in places))
        return found

    def of(self, front: str) -> str:
        """What the operator is called that a value enters: the first one."""
        return next(self.kinds[at].split(".")[-1] for (at, _), name in self.enters.items() if name == front)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those that its bodies take from outside included."""
    yield from (name for name in node.input if name)
    for graph in _bodies(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from reads(inner)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


class _Flow:
    """What the values of a graph depend on, and what follows its nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        stored = {tensor.name for tensor in graph.initializer}
        self.nodes = list(graph.node)
        self.numbers = {value.name for value in graph.input if value.name not in stored}
        self.sizes: set[str] = set()
        for node in self.nodes:
            names = set(reads(node))
            if names & self.numbers:
                (self.sizes if _is(node, _SIZES) else self.numbers).update(node.output)
            elif names & self.sizes:
                self.sizes.update(node.output)
        self.numbers.discard("")
        self.precedes_layer = self._precedes_layer()

    def _precedes_layer(self) -> list[bool]:
        """Is a node a layer, or does one follow it?"""
        wanted: set[str] = set()
        found = []
        for node in reversed(self.nodes):
            precedes = self._is_layer(node) or any(name in wanted for name in node.output)
            if precedes:
                wanted.update(name for name in reads(node) if name in self.numbers)
            found.append(precedes)
        return found[::-1]

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        if any(_is(inner, LAYERS) for inner in _inner_nodes(node)):
            return True
        literal = any(name and name not in self.numbers and name not in self.sizes for name in node.input)
        return _is(node, LAYERS) and literal and any(name in self.numbers for name in node.input)


def _is(node: onnx.NodeProto, kinds: frozenset[str]) -> bool:
    return node.op_type in kinds and node.domain in _KNOWN


def _inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for graph in _bodies(node):
        for inner in graph.node:
            yield inner
            yield from _inner_nodes(inner)


def decoding_nodes(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes that an output comes from and that no layer with weights follows, layers themselves left out."""
    flow = _Flow(graph)
    wanted, found = {output}, []
    for node, precedes in zip(reversed(flow.nodes), reversed(flow.precedes_layer), strict=True):
        if not precedes and wanted & set(node.output):
            wanted.update(reads(node))
            if flow.numbers & set(node.output):
                found.append(node)
    return found[::-1]


def find_selection(graph: onnx.GraphProto, kinds: frozenset[str] = DISCRETE) -> Selection | None:
    """The last part of a graph that selects, or None.

    Args:
        graph: its nodes in the order of computation.
        kinds: what begins it, `DISCRETE` or `ROWS`. With `DISCRETE`, an operator that nobody knows begins it, too.
    """
    flow = _Flow(graph)
    inside: set[str] = set()
    nodes = []
    for node, precedes in zip(flow.nodes, flow.precedes_layer, strict=True):
        names = set(reads(node))
        # The size of what was selected depends on numbers, too: whatever reads from inside is inside.
        if not precedes and (inside & names or (flow.numbers & names and _selects(node, kinds))):
            nodes.append(node)
            inside.update(name for name in node.output if name)
    nodes = _needed(nodes, graph)
    if not nodes:
        return None
    enters, sizes = {}, []
    for at, node in enumerate(node for node in nodes if not _is(node, _COPIES)):
        for place, name in enumerate(dict.fromkeys(reads(node))):
            if name in flow.numbers and name not in inside:
                enters[at, place] = name
            elif name in flow.sizes and name not in inside:
                sizes.append(name)
    outputs = tuple(value.name for value in graph.output if value.name in inside)
    return Selection(graph, tuple(nodes), enters, tuple(dict.fromkeys(sizes)), outputs)


def _selects(node: onnx.NodeProto, kinds: frozenset[str]) -> bool:
    if any(_selects(inner, kinds) for inner in _inner_nodes(node)):
        return True
    if kinds is DISCRETE and (node.domain not in _KNOWN or (node.op_type == "Cast" and _cast_to(node) not in _FLOATS)):
        return True
    return _is(node, kinds)


def _cast_to(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), TensorProto.FLOAT)


def _needed(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those of the nodes that an output comes from, the ones that are read first of all before those that read."""
    by_output = {name: node for node in nodes for name in node.output if name}
    found: list[onnx.NodeProto] = []
    done: set[int] = set()
    waiting = [(by_output[value.name], False) for value in reversed(graph.output) if value.name in by_output]
    while waiting:
        node, is_read = waiting.pop()
        if is_read:
            found.append(node)
        elif id(node) not in done:
            done.add(id(node))
            waiting.append((node, True))
            waiting += [(by_output[name], False) for name in reversed(list(reads(node))) if name in by_output]
    return found


def selecting_part(selection: Selection, model: onnx.ModelProto, given: Mapping[str, np.dtype]) -> onnx.ModelProto:
    """A model of the part that selects alone, whose inputs are the values that enter it.

    Args:
        selection: one of the graph of `model`.
        model: the model; its opsets are taken over.
        given: the types of `fronts` and `sizes`, by name.
    """
    graph = selection.graph
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "selection"
    wanted = {name for node in selection.nodes for name in reads(node)} | set(selection.outputs)
    own, kept = {id(node) for node in selection.nodes}, []
    for node in reversed(graph.node):
        is_literal = not given.keys() & set(node.output) and bool(wanted & set(node.output))
        if id(node) in own or is_literal:
            wanted.update(reads(node))
            kept.append(node)
    part.graph.node.extend(kept[::-1])
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in wanted)
    part.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in wanted)
    for name, dtype in given.items():
        value = part.graph.input.add(name=name)
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in selection.outputs)
    return part

"""The graph that onnxruntime really runs for a file, in terms of the layers that the file has.

Onnxruntime fuses nodes, renames them, and on x86-64 brings convolutions into a layout in which channels stand in blocks
(`com.microsoft.nchwc`). What does not fit is computed by im2col in the plain layout, with a reordering before and
after. Here every node of the optimized graph is traced back to a layer, and what fell out of the layout is named with
the reason. Source of the rules: onnxruntime, `core/optimizer/nchwc_transformer.cc` and `core/mlas/lib/snchwc.cpp`.
"""

import itertools
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import CPU, OnnxSource, load_proto, open_session

__all__ = ["BLOCKED", "Finding", "OptimizedGraph", "OptimizedNode", "optimized_graph", "with_names"]

BLOCKED = "com.microsoft.nchwc"
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Onnxruntime's additions to the names of nodes and values that it makes new.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|/\w+Fusion/)+$")
#: Kernels on int8 beside those whose names begin with QLinear; QuickGelu is none.
_INT8 = frozenset("ConvInteger DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat QAttention QGemm".split())
_WEIGHT = re.compile(r"(\.weight|_weight)?(_quantized|_DequantizeLinear.*|_bias)*$")


@dataclass(frozen=True)
class OptimizedNode:
    """A node of the optimized graph.

    Attributes:
        name: Its name there, by which the profiler knows it.
        op_type: Its operator, with what was fused into it: "Conv+Add+Relu".
        layer: The layer of the file that it belongs to; for other nodes their own name in the file.
        layout: "blocked", "int8", or "plain".
    """

    name: str
    op_type: str
    layer: str
    layout: str


@dataclass(frozen=True)
class Finding:
    """A node that is slower than it could be.

    Attributes:
        node: Its name in the optimized graph.
        op_type: Its operator.
        layer: The layer that it belongs to.
        reason: Why it fell out of the layout.
    """

    node: str
    op_type: str
    layer: str
    reason: str


@dataclass(frozen=True)
class OptimizedGraph:
    """What onnxruntime runs.

    Attributes:
        nodes: All nodes, in the order of the graph.
        findings: What is outside the blocked layout and need not be; empty where the machine has none.
    """

    nodes: tuple[OptimizedNode, ...]
    findings: tuple[Finding, ...]

    def count(self, op_type: str) -> int:
        """Number of nodes of this operator, fused or not, as the first part of `OptimizedNode.op_type`."""
        return sum(node.op_type.split("+")[0] == op_type for node in self.nodes)


def optimized_graph(source: OnnxSource, *, threads: int = 1, provider: str = CPU) -> OptimizedGraph:
    """Let onnxruntime optimize a file for this machine, and look at the result.

    Raises:
        ModelLoadError: The file is missing, broken or beyond this onnxruntime.
    """
    source = with_names(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(source, threads=threads, provider=provider, optimized=str(path))
        optimized = onnx.load(path, load_external_data=False)
    origins = _Origins(load_proto(source).graph)
    nodes = [node for node in optimized.graph.node if node.op_type != "Constant"]
    known = {id(node): _describe(node, origins) for node in nodes}
    has_blocks = machine_facts().conv_block > 1 and provider == CPU
    findings = tuple(_Findings(optimized.graph, known)) if has_blocks else ()
    return OptimizedGraph(tuple(known[id(node)] for node in nodes), findings)


def with_names(source: OnnxSource) -> OnnxSource:
    """The model with a name for every node, by which the optimized graph and the profiler speak of them."""
    model = load_proto(source)
    if all(node.name for node in model.graph.node):
        return source
    name_nodes(model.graph.node)
    return model.SerializeToString()


def name_nodes(nodes: Iterable[Any]) -> None:
    """Give every node (of onnx or onnx_ir) a name of its own; the first of several with one name keeps it."""
    every = list(nodes)
    taken = {node.name for node in every}
    seen: set[str] = set()
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    for node in every:
        if not node.name or node.name in seen:
            names = (f"{node.op_type}_{number}" for number in numbers[node.op_type])
            node.name = next(name for name in names if name not in taken)
        seen.add(node.name)


class _Origins:
    """Finds the layer of the file that a node of the optimized graph came from."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._by_name = {node.name: node for node in graph.node if node.name}
        self._by_value = {name: node for node in graph.node for name in node.output}
        self._claimed: set[str] = set()

    def layer_of(self, node: onnx.NodeProto) -> str:
        stem = _SUFFIX.sub("", node.name)
        found = self._by_name.get(stem) or self._by_value.get(stem)
        for name in (*node.output, *node.input[:1]) if found is None else ():
            found = found or self._by_value.get(name)
        if found is None:
            return stem or node.op_type
        if node.op_type in _CONVOLUTIONS or node.op_type in ("QLinearConv", "QGemm", "Gemm"):
            found = self._computing(found) or found
        return self.label(found)

    def _computing(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The nearest layer before a node, as fusions take the name of the last node; each counts once."""
        queue, seen = [node], {id(node)}
        while queue:
            at = queue.pop(0)
            if at.op_type in _LAYERS:
                if at.output[0] in self._claimed:
                    continue
                self._claimed.add(at.output[0])
                return at
            for name in at.input:
                before = self._by_value.get(name)
                if before is not None and id(before) not in seen:
                    seen.add(id(before))
                    queue.append(before)
        return None

    def label(self, node: onnx.NodeProto) -> str:
        """A layer's name in the network where its weight tells it: "layer2.0.conv1" of "layer2.0.conv1.weight"."""
        weight = node.input[1] if node.op_type in _LAYERS and len(node.input) > 1 else ""
        before = self._by_value.get(weight)
        if before is not None and before.input:  # a DequantizeLinear
            weight = before.input[0]
        return _WEIGHT.sub("", weight) if weight and "." in weight else node.name or node.output[0]


def _describe(node: onnx.NodeProto, origins: _Origins) -> OptimizedNode:
    fused = [node.op_type]
    if node.op_type in _CONVOLUTIONS:
        fused += ["Add"] if len(node.input) > 3 and node.input[3] else []
        fused += [a.s.decode() for a in node.attribute if a.name == "activation"]
    layout = "blocked" if node.domain == BLOCKED else "plain"
    if node.op_type.startswith("QLinear") or node.op_type in _INT8:
        layout = "int8"
    return OptimizedNode(node.name, "+".join(fused), origins.layer_of(node), layout)


class _Findings:
    """Iterates over what fell out of the layout in an optimized graph, with reasons."""

    def __init__(self, graph: onnx.GraphProto, known: dict[int, OptimizedNode]) -> None:
        self._graph, self._known = graph, known
        self._block = machine_facts().conv_block
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def __iter__(self) -> Iterator[Finding]:
        for node in self._graph.node:
            reason = None
            if node.domain == BLOCKED and node.op_type in _REORDERS:
                reason = self._of_reorder(node)
            elif node.domain != BLOCKED and node.op_type in _CONVOLUTIONS:
                reason = self._of_convolution(node)
            elif node.domain != BLOCKED and node.op_type in (*_POOLS, "Add"):
                reason = self._of_plain(node)
            if reason is not None:
                known = self._known[id(node)]
                yield Finding(node.name, known.op_type, known.layer, reason)

    def _of_convolution(self, node: onnx.NodeProto) -> str:
        weight = self._dims.get(node.input[1])
        if weight is None:
            return "its weight is no constant of the file"
        if len(weight) != 4:
            return f"a convolution over {len(weight) - 2} dimension(s); blocks are for images"
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        outputs, inputs = weight[0], weight[1]
        if groups == 1:
            if inputs >= self._block and inputs % 4:
                return f"{inputs} input channels are no multiple of 4"
            return "its type or an attribute has no blocked kernel"
        if inputs == 1 and outputs == groups:
            return f"depthwise, {outputs} channels are no multiple of 4" if outputs % 4 else "no blocked kernel"
        each = outputs // groups
        if inputs % self._block or each % self._block:
            return f"grouped, {inputs} to {each} channels a group are no multiples of {self._block}"
        return "grouped: its type or an attribute has no blocked kernel"

    def _of_plain(self, node: onnx.NodeProto) -> str | None:
        """Pools and additions that have a blocked value before them, which had to be reordered for them."""
        reordered = [name for name in node.input if self._is_from_blocks(name)]
        if not reordered:
            return None
        if node.op_type == "Add":
            others = [name for name in node.input if name not in reordered]
            makers = {self._makers[name].op_type for name in others if name in self._makers}
            if makers:
                return f"not fused: its other input comes from {', '.join(sorted(makers))}, which has no blocks"
            return "not fused: the sizes of its inputs are not known to be equal"
        sizes = [shape[1] for name in node.input if len(shape := self._shapes.get(name, ())) == 4]
        odd = [size for size in sizes if size % self._block]
        return f"{odd[0]} channels are no multiple of {self._block}" if odd else None

    def _of_reorder(self, node: onnx.NodeProto) -> str | None:
        """None for the one before the head, which every network has."""
        if node.op_type == "ReorderInput":
            maker = self._makers.get(node.input[0])
            return f"into blocks, as {maker.op_type if maker is not None else 'the input'} gives none"
        readers = self._readers.get(node.output[0], [])
        if not readers or not self._leads_to_blocks(node.output[0]):
            return None
        return f"out of blocks, for {', '.join(sorted({reader.op_type for reader in readers}))}"

    def _is_from_blocks(self, name: str) -> bool:
        maker = self._makers.get(name)
        return maker is not None and maker.op_type == "ReorderOutput"

    def _leads_to_blocks(self, name: str) -> bool:
        """Whether a convolution comes after a value."""
        queue, seen = [name], {name}
        while queue:
            for reader in self._readers.get(queue.pop(), []):
                if reader.op_type in _CONVOLUTIONS:
                    return True
                for output in reader.output:
                    if output not in seen:
                        seen.add(output)
                        queue.append(output)
        return False

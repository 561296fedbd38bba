"""The graph that onnxruntime really runs for a file, in terms of the layers that the file has.

Onnxruntime fuses nodes, renames them, and on x86-64 brings convolutions into a layout in which channels stand in blocks
(`com.microsoft.nchwc`); layers of quantized files it computes in integers. Here every node of the optimized graph is
traced back to a layer, and what fell out of the layout, or is not computed in integers, is named with the reason.
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

from graphprune.runtime.block_findings import block_findings
from graphprune.runtime.integer_findings import integer_findings
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_session import CPU, OnnxSource, load_proto, open_session
from graphprune.runtime.optimized_nodes import BLOCKED, CONVOLUTIONS, Finding, OptimizedNode

__all__ = ["BLOCKED", "Finding", "OptimizedGraph", "OptimizedNode", "optimized_graph", "with_names"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Onnxruntime's additions to the names of nodes and values that it makes new.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|/\w+Fusion/)+$")
#: Kernels on int8 beside those whose names begin with QLinear; QuickGelu is none.
_INT8 = frozenset("ConvInteger DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat QAttention QGemm".split())
_WEIGHT = re.compile(r"(\.weight|_weight)?(_quantized|_DequantizeLinear.*|_bias)*$")


@dataclass(frozen=True)
class OptimizedGraph:
    """What onnxruntime runs.

    Attributes:
        nodes: All nodes, in the order of the graph.
        findings: What is outside the blocked layout and need not be, where the machine has one; and of quantized files
            which layers are not computed in integers.
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
    source_graph = load_proto(source).graph
    origins = _Origins(source_graph)
    nodes = [node for node in optimized.graph.node if node.op_type != "Constant"]
    known = {id(node): _describe(node, origins) for node in nodes}
    has_blocks = machine_facts().conv_block > 1 and provider == CPU
    literals = {tensor.name: tensor for tensor in source_graph.initializer}
    findings = list(block_findings(optimized.graph, known, literals)) if has_blocks else []
    if provider == CPU:
        findings += integer_findings(optimized.graph, known, source_graph, origins.node_of)
    return OptimizedGraph(tuple(known[id(node)] for node in nodes), tuple(findings))


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
        self._found: dict[int, onnx.NodeProto] = {}

    def layer_of(self, node: onnx.NodeProto) -> str:
        """What the layer of the file is called that a node comes from."""
        stem = _SUFFIX.sub("", node.name)
        found = self._by_name.get(stem) or self._by_value.get(stem)
        for name in (*node.output, *node.input[:1]) if found is None else ():
            found = found or self._by_value.get(name)
        if found is None:
            return stem or node.op_type
        if node.op_type in CONVOLUTIONS or node.op_type in ("QLinearConv", "QGemm", "Gemm"):
            found = self._computing(found) or found
        self._found[id(node)] = found
        return self.label(found)

    def node_of(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node of the file that `layer_of` has found for one of the optimized graph."""
        return self._found.get(id(node))

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
    if node.op_type in CONVOLUTIONS:
        fused += ["Add"] if len(node.input) > 3 and node.input[3] else []
        fused += [a.s.decode() for a in node.attribute if a.name == "activation"]
    layout = "blocked" if node.domain == BLOCKED else "plain"
    if node.op_type.startswith("QLinear") or node.op_type in _INT8:
        layout = "int8"
    return OptimizedNode(node.name, "+".join(fused), origins.layer_of(node), layout)

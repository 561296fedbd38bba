"""Nodes of the graph that onnxruntime runs, and what is found about them; layers are those of the file."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

__all__ = [
    "BLOCKED",
    "BLOCKS",
    "CONVOLUTIONS",
    "INTEGERS",
    "Finding",
    "GraphIndex",
    "OptimizedNode",
    "number",
    "word",
]

BLOCKED = "com.microsoft.nchwc"
CONVOLUTIONS = frozenset({"Conv", "FusedConv"})

#: What a finding is about: the layout in blocks of channels, or kernels on integers.
BLOCKS, INTEGERS = "blocks", "integers"


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
        reason: Why it fell out of the layout, or is not computed in integers.
        about: `BLOCKS` or `INTEGERS`.
    """

    node: str
    op_type: str
    layer: str
    reason: str
    about: str = BLOCKS


class GraphIndex:
    """Who gives and who reads the values of a graph; its literals."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.literals = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = frozenset(value.name for value in graph.output)

    def maker(self, node: onnx.NodeProto, position: int) -> onnx.NodeProto | None:
        """The node that gives an input of another."""
        return self.makers.get(node.input[position]) if position < len(node.input) else None

    def kind(self, name: str) -> int | None:
        """Number format of a value, as far as the graph states it."""
        return self.literals[name].data_type if name in self.literals else self._kinds.get(name)

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a literal."""
        return tuple(self.literals[name].dims) if name in self.literals else None

    def numbers(self, name: str) -> np.ndarray | None:
        """Numbers of a literal."""
        return onnx.numpy_helper.to_array(self.literals[name]) if name in self.literals else None

    @cached_property
    def _kinds(self) -> dict[str, int]:
        values: Iterable[onnx.ValueInfoProto] = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in values}


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """An attribute that is a number."""
    found = next((a for a in node.attribute if a.name == name), None)
    if found is None:
        return default
    return found.f if found.type == onnx.AttributeProto.FLOAT else found.i


def word(node: onnx.NodeProto, name: str, default: str) -> str:
    """An attribute that is a text."""
    return next((a.s.decode() for a in node.attribute if a.name == name), default)

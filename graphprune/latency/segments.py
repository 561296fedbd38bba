"""An ONNX graph in segments: what onnxruntime runs as one kernel, and which widths its time depends on.

A segment is an operator that computes (convolution, matrix product, pooling, ...) with what follows it position by
position: activation, the addition that closes a residual branch. Runtimes fuse these, and where they do not, the parts
still have the same widths. Segments that do the same at the same sizes are of one kind and share their measurements.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphprune.passes.channels.labels import Mask
from graphprune.passes.onnx.model import attributes
from graphprune.widths import Axis, axis_of

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Segment", "Segments", "read_segments"]

_FOLLOWS = frozenset(
    "Relu Clip Sigmoid HardSigmoid HardSwish LeakyRelu PRelu Elu Selu Celu Tanh Erf Gelu Mish Softplus Softsign Swish "
    "Add Sub Mul Div Pow Min Max Neg Abs Exp Log Sqrt Reciprocal Where BatchNormalization Identity Cast Dropout "
    "QuantizeLinear DequantizeLinear Reshape Flatten Squeeze Unsqueeze Softmax LogSoftmax".split()
)
#: Attributes that change with the widths, and what onnxruntime can tell from elsewhere.
_OF_WIDTHS = frozenset({"group", "kernel_shape"})


@dataclass(frozen=True)
class Segment:
    """A piece of the network that runs as one kernel.

    Attributes:
        name: the operator it begins with.
        kind: what it does at which sizes; segments of one kind take the same time at the same lengths.
        axes: the lengths that its time depends on: channels read, channels written.
    """

    name: str
    kind: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Segments:
    """All segments of a file.

    Attributes:
        items: the segments, in the order of computation.
        of_name: name of a node or value -> the segment it is in.
    """

    items: tuple[Segment, ...]
    of_name: Mapping[str, int]

    def times(self, kernels: Sequence[tuple[str, float]]) -> np.ndarray:
        """(n_segments,) sum of the times of kernels, given in their order by name.

        A kernel that no operator of the file is named in (a change of layout) counts to the segment before it.
        """
        total = np.zeros(len(self.items))
        last = 0
        for name, seconds in kernels:
            last = self._find(name, last)
            total[last] += seconds
        return total

    def _find(self, kernel: str, last: int) -> int:
        plain = re.sub(r"_token_\d+$", "", kernel.removeprefix("fused "))
        for name in (kernel, plain, plain.removesuffix("_nchwc")):
            if name in self.of_name:
                return self.of_name[name]
        parts = re.split(r"[ /]", plain)
        return next((self.of_name[part] for part in parts if part in self.of_name), last)


def read_segments(onnx_graph: "ChannelGraph", graph: "ChannelGraph") -> Segments:
    """The segments of an analyzed ONNX file, with widths in terms of the sets of `graph`.

    Args:
        onnx_graph: channel groups of the file.
        graph: channel groups of the model that the file was exported from; or of the file itself.
    """
    return _Reader(onnx_graph, graph).read()


class _Reader:
    def __init__(self, onnx_graph: "ChannelGraph", graph: "ChannelGraph") -> None:
        self.front = onnx_graph.front_end
        self.found = onnx_graph
        self.graph = graph
        self.group_of = _translated(onnx_graph, graph)
        self.sizes = np.array([len(s.groups) for s in graph.sets])
        self.heads: list[ir.Node] = []
        self.members: list[list[ir.Node]] = []
        self.segment_of: dict[ir.Node, int] = {}

    def read(self) -> Segments:
        of_name: dict[str, int] = {}
        for node in self.front.model.graph:
            if self._is_constant(node):
                continue
            index = self._place(node)
            self.segment_of[node] = index
            for name in (node.name, *(value.name for value in node.outputs)):
                if name:
                    of_name[name] = index
        return Segments(tuple(self._segment(index) for index in range(len(self.heads))), of_name)

    def _is_constant(self, node: ir.Node) -> bool:
        known = [self.front.env.get(value) for value in node.outputs]
        return all(value is not None and value.constant for value in known)

    def _place(self, node: ir.Node) -> int:
        """The segment of a node: that of the operator it follows, or a new one."""
        producers = [value.producer() for value in node.inputs if value is not None]
        before = [self.segment_of[p] for p in producers if p is not None and p in self.segment_of]
        if node.op_type in _FOLLOWS and before:
            index = max(before)
            self.members[index].append(node)
            return index
        self.heads.append(node)
        self.members.append([node])
        return len(self.heads) - 1

    def _segment(self, index: int) -> Segment:
        head = self.heads[index]
        read = next((value for value in head.inputs if value is not None and self._is_activation(value)), None)
        ends = [read, head.outputs[0]] if head.op_type != "Concat" else [head.outputs[0]]
        present = [value for value in ends if value is not None]
        axes = [self._axis(value) for value in present]
        moving = tuple(dict.fromkeys(axis for axis in axes if axis is not None and axis.terms))
        fixed = [self._channels(v) for v, axis in zip(present, axes, strict=True) if axis is None or not axis.terms]
        kind = [fixed, [self._describe(node) for node in self.members[index]]]
        return Segment(head.name or head.outputs[0].name or head.op_type, json.dumps(kind), moving)

    def _is_activation(self, value: ir.Value) -> bool:
        known = self.front.env.get(value)
        return known is not None and not known.constant

    def _axis(self, value: ir.Value) -> Axis | None:
        if value.name not in self.found.value_groups:
            return None
        ids = self.found.value_groups[value.name][1]
        ours = np.where(ids >= 0, np.append(self.group_of, -1)[ids], -1)
        return axis_of(ours, self.graph.set_of, self.sizes)

    def _channels(self, value: ir.Value) -> list[int]:
        known = self.front.env.get(value)
        return list(known.shape[1:]) if known is not None else []

    def _describe(self, node: ir.Node) -> list[Any]:
        """What a node does, without what the widths say."""
        options = {key: value for key, value in attributes(node).items() if key not in _OF_WIDTHS}
        known = [self.front.env.get(value) for value in node.outputs]
        spatial = [list(value.shape[2:]) for value in known if value is not None]
        weights = [self.front.env[v].shape[2:] for v in node.inputs if v is not None and v.name in self.front.names]
        grouping = self._grouping(node)
        formats = [str(v.dtype) for v in (*node.inputs, *node.outputs) if v is not None]
        return [
            node.op_type,
            json.loads(json.dumps(options, default=str)),
            spatial,
            [list(w) for w in weights],
            grouping,
            formats,
        ]

    def _grouping(self, node: ir.Node) -> str:
        group = attributes(node).get("group", 1)
        read = self.front.env.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if group == 1 or read is None:
            return ""
        return "depthwise" if group == read.shape[1] else f"{group} groups"


def _translated(onnx_graph: "ChannelGraph", graph: "ChannelGraph") -> np.ndarray:
    """(groups of the file,) the group of `graph` that each is, by the weights that both have; -1 where none is."""
    if onnx_graph is graph:
        return np.arange(graph.n_groups)
    translated = np.full(onnx_graph.n_groups, -1, dtype=np.int64)
    for (name, dim), ids in onnx_graph.axes.items():
        ours = graph.axes.get((name, dim))
        if ours is None or onnx_graph.shapes[name] != tuple(graph.shapes[name]):
            continue
        known: Mask = (ids >= 0) & (ours >= 0)
        translated[ids[known]] = ours[known]
    return translated

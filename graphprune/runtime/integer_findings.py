"""Which layers of a quantized file onnxruntime computes in float32 all the same, or slowly in integers, and why.

A layer between DequantizeLinear and QuantizeLinear becomes one on integers where its operator has such a kernel and
what stands around it is as the kernel takes it. Source of the rules: onnxruntime,
`core/optimizer/qdq_transformer/`: `selectors_actions/qdq_selectors.cc` and `qdq_s8_to_u8.cc`; each was seen in 1.32.0.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from graphprune.runtime.machine import machine_facts
from graphprune.runtime.optimized_nodes import (
    BLOCKED,
    CONVOLUTIONS,
    INTEGERS,
    Finding,
    GraphIndex,
    OptimizedNode,
    number,
)

__all__ = ["integer_findings"]

_PRODUCTS = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits"})
_FLOATS = frozenset({*CONVOLUTIONS, "ConvTranspose", *_PRODUCTS})
_INTEGER = frozenset({"QLinearConv", "QGemm"})
_ROUNDING = "QuantizeLinear"
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
#: Channels at multiples of which the integer kernels of x86-64 are quick; seen with AVX2.
_STEP = 8


def integer_findings(
    graph: onnx.GraphProto,
    known: Mapping[int, OptimizedNode],
    source: onnx.GraphProto,
    origin: Callable[[onnx.NodeProto], onnx.NodeProto | None],
) -> Iterator[Finding]:
    """Yield the layers of a quantized file that are computed in float32, or slowly, with reasons.

    Args:
        graph: the optimized graph.
        known: what is known of its nodes, by their identity.
        source: the graph of the file; nothing is found where it is not quantized.
        origin: gives the layer of the file that a node of the optimized graph comes from.
    """
    if not any(node.op_type == "DequantizeLinear" for node in source.node):
        return
    reasons, optimized = _Reasons(source), GraphIndex(graph)
    for node in graph.node:
        reason = None
        if node.op_type in _INTEGER:
            layer = origin(node)
            reason = None if layer is None else reasons.of_error(layer)
            if reason is None and node.op_type == "QLinearConv":
                reason = _of_widths(node, optimized)
        elif node.op_type in _FLOATS or (node.domain == BLOCKED and node.op_type in CONVOLUTIONS):
            layer = origin(node)
            reason = None if layer is None else reasons.of(layer)
        if reason is not None:
            yield Finding(node.name, known[id(node)].op_type, known[id(node)].layer, reason, INTEGERS)


def _of_widths(node: onnx.NodeProto, index: GraphIndex) -> str | None:
    """Why a convolution on integers is slower than others; None where nothing is known against it."""
    sizes = index.sizes(node.input[3])
    if sizes is None:
        return None
    groups, outputs, inputs = int(number(node, "group", 1)), *sizes[:2]
    if groups == 1:
        odd = [width for width in (inputs, outputs) if width > _STEP and width % _STEP]
        return f"in integers, but {_and(odd)} channels are no multiples of {_STEP}" if odd else None
    if inputs == 1:
        return (
            f"in integers, but depthwise with {outputs} channels, no multiple of {_STEP}" if outputs % _STEP else None
        )
    return f"in integers, but {groups} groups are computed one after the other"


def _and(widths: list[int]) -> str:
    return " and ".join(str(width) for width in dict.fromkeys(widths))


class _Reasons:
    """Looks at what stands around a layer in a quantized file."""

    def __init__(self, source: onnx.GraphProto) -> None:
        self._index = GraphIndex(source)

    def of(self, node: onnx.NodeProto) -> str:
        """Why a layer is computed in float32."""
        read, weight = (self._dequantized(node, position) for position in (0, 1))
        if read is None and weight is None:
            return "in float32 in the file: neither its input nor its weight is quantized"
        if node.op_type == "ConvTranspose":
            return "onnxruntime computes no transposed convolution in integers"
        if read is None:
            return f"its input '{node.input[0]}' is not quantized"
        if weight is None:
            return "its weight is not quantized"
        return (
            self._of_types(read, weight, node)
            or self._of_output(node)
            or self._of_bias(node, read, weight)
            or "what stands around it is not as the integer kernel takes it"
        )

    def of_error(self, node: onnx.NodeProto) -> str | None:
        """What is wrong with the numbers of a layer that is computed in integers; onnxruntime itself says nothing."""
        read, weight = (self._dequantized(node, position) for position in (0, 1))
        if read is None or weight is None:
            return None
        scale = self._index.sizes(weight.input[1])
        if node.op_type == "Conv" and scale and scale[0] > 1 and number(weight, "axis", 1) != 0:
            return "WRONG NUMBERS: the scales of its weight are not along its outputs, and are taken for those"
        problem = self._of_bias_scale(node, read, weight)
        return None if problem is None else f"WRONG NUMBERS: {problem}, and is taken for it"

    def _dequantized(self, node: onnx.NodeProto, position: int) -> onnx.NodeProto | None:
        maker = self._index.maker(node, position)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def _type(self, node: onnx.NodeProto) -> int | None:
        """Number format of what a DequantizeLinear reads, or a QuantizeLinear gives."""
        if len(node.input) > 2 and node.input[2]:
            return self._index.kind(node.input[2])
        return self._index.kind(node.input[0]) if node.op_type == "DequantizeLinear" else TensorProto.UINT8

    def _of_types(self, read: onnx.NodeProto, weight: onnx.NodeProto, node: onnx.NodeProto) -> str | None:
        for what, kind in (("weights", self._type(weight)), ("activations", self._type(read))):
            if kind is not None and kind not in _BYTES:
                name = TensorProto.DataType.Name(kind).lower()
                return f"its {what} are {name}, and there are integer kernels for 8 bits alone"
        is_signed = self._type(read) == TensorProto.INT8 and node.op_type in CONVOLUTIONS
        if not is_signed or machine_facts().architecture == "arm64":
            return None
        values = {"input": read.input[0]}
        for reader in self._index.readers.get(node.output[0], ()):
            if reader.op_type == _ROUNDING:
                values["output"] = reader.output[0]
        for what, value in values.items():
            if (times := self._times_read(value)) > 1:
                return (
                    "signed activations: onnxruntime computes with unsigned ones here, and makes them of signed ones "
                    f"only where they are read once; its {what} is read {times} times"
                )
        return None

    def _times_read(self, quantized: str) -> int:
        """How many nodes read what a quantized value stands for."""
        readers = self._index.readers.get(quantized, [])
        return sum(len(self._index.readers.get(reader.output[0], [])) for reader in readers)

    def _of_output(self, node: onnx.NodeProto) -> str | None:
        """Convolutions need their result rounded; products give floats as well."""
        if node.op_type not in CONVOLUTIONS:
            return None
        name = node.output[0]
        readers = self._index.readers.get(name, [])
        if name in self._index.outputs or not readers:
            return "its output is not rounded to bytes: it is one of the model"
        if len(readers) > 1:
            return f"its output is read {len(readers)} times before it is rounded to bytes"
        if readers[0].op_type == _ROUNDING:
            return None
        behind = self._index.readers.get(readers[0].output[0], [])
        if any(reader.op_type == _ROUNDING for reader in behind):
            return f"{readers[0].op_type} stands between it and the rounding of its output to bytes"
        return f"its output is not rounded to bytes: {readers[0].op_type} reads it"

    def _of_bias(self, node: onnx.NodeProto, read: onnx.NodeProto, weight: onnx.NodeProto) -> str | None:
        if node.op_type == "Gemm":
            has_bias = len(node.input) > 2 and bool(node.input[2])
            if has_bias and (number(node, "alpha", 1) != 1 or number(node, "beta", 1) != 1):
                return "it adds a bias, and alpha and beta are not both 1"
            if weight.op_type == "DequantizeLinear" and self._is_along_inputs(node, weight):
                return "its weights have a scale for each input, and not for each output"
        if len(node.input) < 3 or not node.input[2]:
            return None
        bias = self._dequantized(node, 2)
        sizes = self._index.sizes(node.input[2] if bias is None else bias.input[0])
        if sizes is not None and len(sizes) != 1:
            return f"its bias has {len(sizes)} dimensions"
        return self._of_bias_scale(node, read, weight)

    def _of_bias_scale(self, node: onnx.NodeProto, read: onnx.NodeProto, weight: onnx.NodeProto) -> str | None:
        bias = self._dequantized(node, 2)
        if bias is None:
            return None
        scales = [self._index.numbers(part.input[1]) for part in (bias, read, weight)]
        if any(scale is None for scale in scales):
            return None
        ours, first, second = (np.asarray(scale, np.float64) for scale in scales)
        if not np.allclose(ours, first * second, rtol=1e-3):
            return "the scale of its bias is not that of its input times that of its weight"
        return None

    def _is_along_inputs(self, node: onnx.NodeProto, weight: onnx.NodeProto) -> bool:
        scale = self._index.sizes(weight.input[1])
        axis = number(weight, "axis", 1)
        return bool(scale and scale[0] > 1) and axis != (0 if number(node, "transB", 0) else 1)

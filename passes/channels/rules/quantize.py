"""Quantized tensors: q = round(x / scale) + zero point, with one scale for all or one for each channel of an axis.

What stands for zero in a quantized tensor is its zero point, so "zero" is told of elements at the zero point and
holds as long as who reads them subtracts the same one (`Value.zero_point`). Quantizing zero gives the zero point
exactly. Scales and zero points of a channel go with it.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.operators import Like
from graphprune.passes.channels.rules.conv import convolution, read_group, resize_groups, write_group
from graphprune.passes.channels.rules.linear import matmul
from graphprune.passes.channels.value import Facet, Value


def zero_point_of(value: Value | None) -> Hashable | None:
    """What tells a zero point from others; None where it is 0 (or absent)."""
    if value is None:
        return None
    if value.zero_point is not None:  # computed together with the tensor
        return value.zero_point
    if value.data is not None:
        data = np.asarray(value.data).ravel()
        return None if not data.astype(np.int64).any() else ("number", tuple(np.unique(data).tolist()))
    return ("tensor", value.parameter)


def quantize_linear(analysis: Analysis, op: Op) -> list[Value]:
    """Real numbers to integers: zeros come to stand at the zero point."""
    x = op.value("input")
    per_channel(analysis, op, x)
    return [Value(op.shape, x.facets, x.constant, zero_point=zero_point_of(op.optional("zero_point")))]


def dequantize_linear(analysis: Analysis, op: Op) -> list[Value]:
    """Integers to real numbers: the zero point becomes zero.

    1. A weight: where its numbers are known, they are compared with the zero point.
    2. A value: zero where it stands at the zero point that is subtracted.
    """
    x, zero_point = op.value("input"), op.optional("zero_point")
    per_channel(analysis, op, x)
    if x.constant:  # case 1
        return [_real_weight(op, x, zero_point)]
    same = x.zero_point == zero_point_of(zero_point)
    return [Value(op.shape, x.facets if same else _not_zero(x.facets), zero_point=None)]


def dynamic_quantize(analysis: Analysis, op: Op) -> list[Value]:
    """Scale and zero point are computed from the extremes of the tensor, of which zero always is one."""
    x = op.value("input")
    computed_range(analysis, op, x)
    point = ("dynamic", op.name)
    return [Value(op.out_shapes[0], x.facets, zero_point=point), Value(()), Value((), zero_point=point)]


def fake_quantize(analysis: Analysis, op: Op) -> list[Value]:
    """Real numbers as they would come back from integers: (clamp(round(x / scale) + zero) - zero) * scale.

    Zero stays what it is where the integers hold the zero point.
    """
    x, point = op.value("input"), op.inputs.get("zero_point", op.attrs.get("zero_point"))
    per_channel(analysis, op, x)
    numbers = point.data if isinstance(point, Value) else point
    low, high = op.attrs["quant_min"], op.attrs["quant_max"]
    holds = numbers is None or bool(np.all((np.asarray(numbers) >= low) & (np.asarray(numbers) <= high)))
    return [Value(op.shape, x.facets if holds else _not_zero(x.facets))]


def computed_range(analysis: Analysis, op: Op, x: Value) -> None:
    """The extremes of a tensor and zero: channels that are zero leave it as it is."""
    for facet in x.facets:
        if not facet.zero.all():
            analysis.inexact(facet.labels[~facet.zero], op, "a range over channels")


def _not_zero(facets: tuple[Facet, ...]) -> tuple[Facet, ...]:
    return tuple(facet.with_zero(False) for facet in facets)


def _real_weight(op: Op, x: Value, zero_point: Value | None) -> Value:
    """A weight as real numbers: what matters is where it is not zero."""
    if x.data is None:
        return Value(x.shape, x.facets, constant=True)
    point: Any = 0
    if zero_point is not None and zero_point.data is not None and zero_point.data.size <= 1:
        point = zero_point.data.reshape(())
    elif zero_point is not None and zero_point.data is not None:
        axis = op.attrs.get("axis", 1) % x.rank
        point = zero_point.data.reshape([-1 if d == axis else 1 for d in range(x.rank)])
    elif zero_point is not None:
        return Value(x.shape, _not_zero(x.facets), constant=True)
    loud = x.data != point
    facets = []
    for facet in x.facets:
        others = tuple(d for d in range(x.rank) if d not in facet.dims)
        facets.append(facet.with_zero(~loud.any(axis=others, keepdims=True)))
    return Value(x.shape, tuple(facets), constant=True, data=loud)


def per_channel(analysis: Analysis, op: Op, x: Value) -> None:
    """Scales and zero points of the channels along `axis` go with them; of blocks, nothing can go."""
    for name in ("scale", "zero_point"):
        value = op.optional(name)
        if value is None or all(size == 1 for size in value.shape):
            continue
        if value.rank != 1:
            analysis.freeze_value(x, op, "is quantized in blocks")
            analysis.freeze_value(value, op, "is quantized in blocks")
            continue
        unite_channels(analysis, op, x, op.attrs.get("axis", 1), value, name)


def unite_channels(analysis: Analysis, op: Op, x: Value, dim: int, value: Value, name: str) -> None:
    """The entries of a vector go with the channels along `dim`."""
    channels, own = analysis.axis(x, dim), analysis.axis(value, 0)
    if channels is not None and own is not None:
        analysis.unite(channels.labels, own.labels)
    elif channels is not None:
        analysis.freeze(channels.labels, op, f"its {name} cannot be cut")
    elif own is not None:
        analysis.freeze_value(value, op, "scales channels that cannot be cut")


def operand(op: Op, name: str, scale: str, zero_point: str, axis: int) -> tuple[Op, Value]:
    """An operand of a quantized product as real numbers."""
    inputs = {"input": op.inputs[name], "scale": op.inputs.get(scale), "zero_point": op.inputs.get(zero_point)}
    part = Op(op.kind, op.name, op.where, inputs, {"axis": axis}, (op.value(name).shape,))
    x = op.value(name)
    if x.constant:
        return part, _real_weight(part, x, part.optional("zero_point"))
    same = x.zero_point == zero_point_of(part.optional("zero_point"))
    return part, replace(x, facets=x.facets if same else _not_zero(x.facets), zero_point=None)


def quantized_result(op: Op, result: Value) -> list[Value]:
    """The result of an operator in integers: where it is zero, it stands at its zero point."""
    return [replace(result, zero_point=zero_point_of(op.optional("out_zero_point")))]


def quantized_convolution(analysis: Analysis, op: Op) -> list[Value]:
    """A convolution on integers; weight scales and zero points belong to output channels."""
    x_part, x = operand(op, "input", "input_scale", "input_zero_point", 1)
    w_part, weight = operand(op, "weight", "weight_scale", "weight_zero_point", 0)
    per_channel(analysis, x_part, x)
    per_channel(analysis, w_part, weight)
    inputs = {"input": x, "weight": weight, "bias": op.inputs.get("bias")}
    (result,) = convolution(analysis, replace(op, inputs=inputs))
    return quantized_result(op, result)


def quantized_matmul(analysis: Analysis, op: Op) -> list[Value]:
    """A matrix product on integers; scales and zero points of the right side belong to columns, of the left to rows."""
    a_part, a = operand(op, "input", "input_scale", "input_zero_point", -2)
    b_part, b = operand(op, "other", "other_scale", "other_zero_point", -1)
    analysis.outputs_along(op.value("other"), -1)
    for part, value in ((a_part, a), (b_part, b)):
        per_channel(analysis, part, value)
    (result,) = matmul(analysis, replace(op, inputs={"input": a, "other": b}))
    return quantized_result(op, result)


_QDQ = Binding(inputs=("input", "scale", "zero_point"))


def _in_both_domains(kind: str, numbers: int) -> dict[str, Binding]:
    """The standard operator, and onnxruntime's own, which has 4 and 16 bits in every opset."""
    like = Like("Identity", numbers=(numbers,))
    return {kind: _QDQ, f"com.microsoft.{kind}": replace(_QDQ, like=like)}


CONV_INPUTS = (
    *("input", "input_scale", "input_zero_point"),
    *("weight", "weight_scale", "weight_zero_point"),
    *("out_scale", "out_zero_point", "bias"),
)
_MATMUL_INPUTS = (
    *("input", "input_scale", "input_zero_point"),
    *("other", "other_scale", "other_zero_point"),
    *("out_scale", "out_zero_point"),
)
_CONV: dict[str, Any] = {"fixed": {"transposed": False}, "read": read_group, "write": write_group}

RULES = (
    Rule("quantization", quantize_linear, onnx=_in_both_domains("QuantizeLinear", numbers=2), quantized=True),
    Rule("dequantization", dequantize_linear, onnx=_in_both_domains("DequantizeLinear", numbers=1), quantized=True),
    Rule(
        "fake quantization",
        fake_quantize,
        aten={
            "fake_quantize_per_channel_affine": Binding(),
            "fake_quantize_per_tensor_affine": Binding(),
            "fake_quantize_per_tensor_affine.tensor_qparams": Binding(),
        },
    ),
    Rule(
        "quantization to a computed range",
        dynamic_quantize,
        onnx={"DynamicQuantizeLinear": Binding(inputs=("input",))},
        quantized=True,
    ),
    Rule(
        "quantized convolution",
        quantized_convolution,
        resize_groups,
        onnx={
            "QLinearConv": Binding(inputs=CONV_INPUTS, **_CONV),
            "ConvInteger": Binding(inputs=("input", "weight", "input_zero_point", "weight_zero_point"), **_CONV),
        },
        quantized=True,
    ),
    Rule(
        "quantized matrix product",
        quantized_matmul,
        onnx={
            "QLinearMatMul": Binding(inputs=_MATMUL_INPUTS),
            "MatMulInteger": Binding(inputs=("input", "other", "input_zero_point", "other_zero_point")),
        },
        quantized=True,
    ),
)

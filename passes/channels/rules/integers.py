"""Operators on quantized tensors as onnxruntime writes them (domain com.microsoft): QLinearAdd, QLinearConcat, QGemm.

    y = quantize(f(dequantize(a), dequantize(b), ...))

Each is coupled as the standard operator f that it is named after, on real numbers. Where f gives zero, the result
stands at its zero point exactly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.coupling import concatenate
from graphprune.passes.channels.operators import Couple, Like
from graphprune.passes.channels.rules import elementwise, norm, reduce
from graphprune.passes.channels.rules.conv import read_group, resize_groups, write_group
from graphprune.passes.channels.rules.fused import channels_last, like_channels_last, microsoft
from graphprune.passes.channels.rules.linear import gemm
from graphprune.passes.channels.rules.quantize import (
    CONV_INPUTS,
    operand,
    per_channel,
    quantized_convolution,
    quantized_result,
)
from graphprune.passes.channels.value import Value

_STANDARD = {
    kind: (rule, binding)
    for of in (elementwise, norm, reduce)
    for rule in of.RULES
    for kind, binding in rule.onnx.items()
}

_RESULT = ("out_scale", "out_zero_point")
_ONE = ("input", "input_scale", "input_zero_point", *_RESULT)
_TWO = (*_ONE[:3], "other", "other_scale", "other_zero_point", *_RESULT)


def _on_real_numbers(couple: Couple) -> Couple:
    """The coupling of a standard operator, between dequantization and quantization."""

    def quantized(analysis: Analysis, op: Op) -> list[Value]:
        names = [name for name in ("input", "other") if op.optional(name) is not None]
        real = {name: operand(op, name, f"{name}_scale", f"{name}_zero_point", 1)[1] for name in names}
        (result,) = couple(analysis, replace(op, inputs=real))
        return quantized_result(op, result)

    return quantized


def join(analysis: Analysis, op: Op) -> list[Value]:
    """Concatenation of tensors, each with a scale and a zero point of its own."""
    given = op.inputs["tensors"]
    values = []
    for tensor, scale, zero_point in zip(given[::3], given[1::3], given[2::3], strict=True):
        part = replace(op, inputs={"input": tensor, "scale": scale, "zero_point": zero_point})
        values.append(operand(part, "input", "scale", "zero_point", 1)[1])
    return quantized_result(op, concatenate(analysis, op, values, op.attrs["dim"]))


def product(analysis: Analysis, op: Op) -> list[Value]:
    """A matrix product with a bias; scales and zero points belong to rows and columns. Without a scale, y is real."""
    a_part, a = operand(op, "input", "input_scale", "input_zero_point", 1 if op.attrs.get("transA") else 0)
    b_part, b = operand(op, "other", "other_scale", "other_zero_point", 0 if op.attrs.get("transB") else 1)
    analysis.outputs_along(op.value("other"), b_part.attrs["axis"])
    for part, value in ((a_part, a), (b_part, b)):
        per_channel(analysis, part, value)
    (result,) = gemm(analysis, replace(op, inputs={"input": a, "other": b, "bias": op.inputs.get("bias")}))
    return [result] if op.optional("out_scale") is None else quantized_result(op, result)


def _read_join(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": attrs.get("axis", 0)}


def _named_after(*kinds: str, inputs: tuple[str, ...] = _ONE) -> Rule:
    """The rule of operators on integers that are named after standard ones of one rule."""
    rule, binding = _STANDARD[kinds[0]]
    assert all(_STANDARD[kind][0] is rule for kind in kinds)
    positions = tuple(at for at, name in enumerate(inputs) if name in ("input", "other"))
    return Rule(
        f"{rule.name}, on integers",
        channels_last(_on_real_numbers(rule.couple)),
        onnx={
            name: Binding(
                inputs=inputs, fixed=binding.fixed, read=_and_layout(binding), like=like_channels_last(kind, positions)
            )
            for kind in kinds
            for name in microsoft(f"QLinear{kind}", binding=binding)
        },
        quantized=True,
    )


def _and_layout(binding: Binding) -> Any:
    """Attributes as the standard operator's rule reads them, and whether the channels lie last."""

    def read(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = attrs if binding.read is None else binding.read(attrs, inputs)
        return {**found, "channels_last": attrs.get("channels_last", 0)}

    return read


RULES = (
    _named_after("Add", inputs=_TWO),
    _named_after("Mul", inputs=_TWO),
    _named_after("LeakyRelu"),
    _named_after("Sigmoid"),
    _named_after("Softmax"),
    _named_after("ReduceMean"),
    _named_after("AveragePool", "GlobalAveragePool"),
    Rule(
        "concatenation, on integers",
        join,
        onnx=microsoft(
            "QLinearConcat",
            binding=Binding(
                inputs=(*_RESULT, "tensors..."),
                read=_read_join,
                like=Like("Concat", slice(2, None, 3), numbers=(2,)),
            ),
        ),
        quantized=True,
    ),
    Rule(
        "general matrix product, on integers",
        product,
        onnx=microsoft(
            "QGemm",
            binding=Binding(inputs=(*_TWO[:6], "bias", *_RESULT), like=Like("Gemm", (0, 3), numbers=(8, 4))),
        ),
        quantized=True,
    ),
    Rule(
        "quantized convolution, channels last or first",
        channels_last(quantized_convolution),
        resize_groups,
        onnx=microsoft(
            "QLinearConv",
            binding=Binding(
                inputs=CONV_INPUTS,
                fixed={"transposed": False},
                read=read_group,
                write=write_group,
                like=like_channels_last("Conv", (0, 3)),
            ),
        ),
        quantized=True,
    ),
)

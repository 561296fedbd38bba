"""What onnxruntime writes when it optimizes a file (domain com.microsoft): several operators in one.

    FusedConv                  activation(convolution(x) + sum)
    FusedGemm, FusedMatMul     activation(a @ b + c), with transposed factors
    SkipLayerNormalization     layer norm(input + skip + bias)
    BiasGelu, FastGelu         gelu(x + bias)
    NhwcMaxPool                a pooling whose channels lie last
    DynamicQuantizeMatMul      a matrix product on integers as real numbers

Each is coupled as what it is made of. Operators of the blocked layout (com.microsoft.nchwc) are not among them: their
weights lie in blocks of one processor's width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.coupling import all_zero, broadcast
from graphprune.passes.channels.operators import Couple, Like
from graphprune.passes.channels.rules.conv import convolution, read_group, resize_groups, write_group
from graphprune.passes.channels.rules.linear import biased, gemm, product
from graphprune.passes.channels.rules.norm import layer_norm
from graphprune.passes.channels.rules.quantize import computed_range, operand, per_channel
from graphprune.passes.channels.rules.reduce import spatial
from graphprune.passes.channels.value import Value

MICROSOFT = "com.microsoft"

#: Activations f with f(0) = 0 for all of their parameters; of a Clip, the parameters say it.
_ZERO_AT_ZERO = frozenset({"", "Relu", "LeakyRelu", "Tanh", "Elu", "Selu", "ThresholdedRelu", "Softsign", "HardSwish"})


def microsoft(*kinds: str, binding: Binding) -> dict[str, Binding]:
    """The binding of operators of onnxruntime's own domain."""
    return {f"{MICROSOFT}.{kind}": binding for kind in kinds}


def _activated(op: Op, result: Value) -> Value:
    """What becomes of the result in the activation that is part of the operator."""
    name, limits = op.attrs.get("activation") or "", list(op.attrs.get("activation_params") or ())
    keeps = name in _ZERO_AT_ZERO or (name == "Clip" and len(limits) == 2 and limits[0] <= 0 <= limits[1])
    return result if keeps else result.with_facets(tuple(facet.with_zero(False) for facet in result.facets))


def fused_convolution(analysis: Analysis, op: Op) -> list[Value]:
    """Activation(convolution(x) + sum)."""
    (result,) = convolution(analysis, op)
    added = op.optional("sum")
    if added is not None:
        result = broadcast(analysis, op, [result, added], all_zero)
    return [_activated(op, result)]


def fused_product(analysis: Analysis, op: Op) -> list[Value]:
    """Activation(a @ b + c), each factor transposed or not."""
    (result,) = gemm(analysis, op)
    return [_activated(op, result)]


def activated_sum(analysis: Analysis, op: Op) -> list[Value]:
    """f(x + bias), or f(x), with f(0) = 0."""
    return [broadcast(analysis, op, op.values(), all_zero)]


def is_plain(op: Op) -> bool:
    """Is a matrix product one of matrices, whose rows do not come before the batch?"""
    ranks = [op.value(name).rank for name in ("input", "other")]
    return min(ranks) > 1 and not op.attrs.get("transBatchA") and not op.attrs.get("transBatchB")


def skip_layer_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Layer norm of a sum, which is the fourth result; statistics come between."""
    parts = [value for name in ("input", "skip", "added") if (value := op.optional(name)) is not None]
    total = broadcast(analysis, op, parts, all_zero)
    attrs = {**op.attrs, "normalized_shape": [op.shape[-1]]}
    results = layer_norm(analysis, replace(op, inputs={**op.inputs, "input": total}, attrs=attrs))
    results += [Value(shape) for shape in op.out_shapes[1:3]]
    return [*results, total][: len(op.out_shapes)]


def product_with_integers(analysis: Analysis, op: Op) -> list[Value]:
    """A product with a quantized matrix, whose scales and zero points belong to columns; the result is real."""
    part, other = operand(op, "other", "other_scale", "other_zero_point", -1)
    per_channel(analysis, part, other)
    if op.optional("input_scale") is not None:
        _, x = operand(op, "input", "input_scale", "input_zero_point", -2)
    else:
        x = op.value("input")
        computed_range(analysis, op, x)
    analysis.outputs_along(op.value("other"), -1)
    plain = replace(op, inputs={"input": x, "other": other, "bias": op.inputs.get("bias")})
    return [biased(analysis, plain, product(analysis, plain, x, other))]


def channels_last(couple: Couple) -> Couple:
    """The coupling where the channels of the input and of the results lie last, if the operator says so."""

    def moved(analysis: Analysis, op: Op) -> list[Value]:
        if not op.attrs.get("channels_last"):
            return couple(analysis, op)
        x = op.value("input")
        inputs = {**op.inputs, "input": x.moved(first(x.shape), lambda array: np.moveaxis(array, -1, 1))}
        shapes = tuple(first(shape) for shape in op.out_shapes)
        results = couple(analysis, replace(op, inputs=inputs, out_shapes=shapes))
        return [value.moved(last(value.shape), lambda array: np.moveaxis(array, 1, -1)) for value in results]

    return moved


def first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, *positions, C) as (N, C, *positions)."""
    return (*shape[:1], *shape[-1:], *shape[1:-1])


def last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, *positions) as (N, *positions, C)."""
    return (*shape[:1], *shape[2:], *shape[1:2])


def like_channels_last(kind: str, inputs: tuple[int, ...] | slice = (0,), always: bool = False) -> Like:
    """A standard operator, where the other's channels may lie last (or always do)."""

    def arrange(attrs: Mapping[str, Any], position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        return first(shape) if position == 0 and (always or attrs.get("channels_last")) else shape

    def restore(attrs: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
        return last(shape) if always or attrs.get("channels_last") else shape

    return Like(kind, inputs, arrange=arrange, restore=restore)


def _as_multiplied(attrs: Mapping[str, Any], position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of a factor once it is transposed."""
    return (*shape[:-2], shape[-1], shape[-2]) if attrs.get("transB" if position else "transA") else shape


def _read_pool(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "spatial": inputs["input"].rank - 2, "channels_last": True}


_CONV: dict[str, Any] = {"fixed": {"transposed": False}, "read": read_group, "write": write_group}
_SKIP_NORM = ("input", "skip", "weight", "bias", "added")

RULES = (
    Rule(
        "convolution with sum and activation",
        fused_convolution,
        resize_groups,
        onnx=microsoft(
            "FusedConv",
            binding=Binding(inputs=("input", "weight", "bias", "sum"), like=Like("Conv", (0, 1, 2)), **_CONV),
        ),
    ),
    Rule(
        "matrix product with transposition and activation",
        fused_product,
        onnx={
            **microsoft("FusedGemm", binding=Binding(inputs=("input", "other", "bias"), like=Like("Gemm", (0, 1, 2)))),
            **microsoft(
                "FusedMatMul",
                binding=Binding(
                    inputs=("input", "other"), covers=is_plain, like=Like("MatMul", (0, 1), arrange=_as_multiplied)
                ),
            ),
        },
    ),
    Rule(
        "activation of a sum, zero at zero",
        activated_sum,
        onnx=microsoft(
            *("BiasGelu", "FastGelu", "Gelu", "QuickGelu"),
            binding=Binding(inputs=("input", "other"), like=Like("Identity")),
        ),
    ),
    Rule(
        "layer norm of a sum",
        skip_layer_norm,
        onnx={
            **microsoft(
                "SkipLayerNormalization",
                binding=Binding(inputs=_SKIP_NORM, fixed={"centered": True}, like=Like("Identity")),
            ),
            **microsoft(
                "SkipSimplifiedLayerNormalization",
                binding=Binding(inputs=(*_SKIP_NORM[:3], "added"), fixed={"centered": False}, like=Like("Identity")),
            ),
        },
    ),
    Rule(
        "pooling, channels last",
        channels_last(spatial),
        onnx=microsoft(
            "NhwcMaxPool",
            binding=Binding(inputs=("input",), read=_read_pool, like=like_channels_last("MaxPool", always=True)),
        ),
        moves=True,
    ),
    Rule(
        "matrix product with integers",
        product_with_integers,
        onnx={
            **microsoft(
                "DynamicQuantizeMatMul",
                binding=Binding(
                    inputs=("input", "other", "other_scale", "other_zero_point", "bias"), like=Like("MatMul", (0, 1))
                ),
            ),
            **microsoft(
                "MatMulIntegerToFloat",
                binding=Binding(
                    inputs=(
                        *("input", "other", "input_scale", "other_scale"),
                        *("input_zero_point", "other_zero_point", "bias"),
                    ),
                    like=Like("MatMul", (0, 1), numbers=(2,)),
                ),
            ),
        },
        quantized=True,
    ),
)

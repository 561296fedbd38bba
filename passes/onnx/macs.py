"""Multiply-accumulates of one node of an ONNX graph, from the sizes of what it reads and gives.

    Conv            elements(out) * (in channels / groups) * kernel
    ConvTranspose   elements(in)  * (out channels / groups) * kernel
    Gemm, MatMul    elements(out) * contracted size
    Einsum          product of the sizes of all letters, where there are several operands
    Attention       heads * queries * keys * (channels of a query + channels of a value)
    LSTM, GRU, RNN  steps * directions * gates * units * (inputs + units)

Additions of biases, activations, pooling and normalization are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx

from graphprune.passes.channels.rules.einsum import spell_out

Shape = tuple[int, ...]

_ONNX = ("", "ai.onnx")
_RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


class UncountedError(LookupError):
    """What a node computes cannot be counted; the argument says why."""


@dataclass(frozen=True)
class Sized:
    """A node and the sizes around it.

    Attributes:
        kind: type of the operator.
        domain: its domain.
        attrs: its attributes as plain values.
        inputs: names of what it reads, "" for what is left out.
        outputs: names of what it gives.
        sizes: those that are known, by name.
    """

    kind: str
    domain: str
    attrs: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    sizes: Mapping[str, Shape]

    def read(self, at: int) -> Shape:
        """Sizes of an input that must be there."""
        return self._size(self.inputs[at])

    def optional(self, at: int) -> Shape | None:
        """Sizes of an input that may be left out."""
        return self._size(self.inputs[at]) if at < len(self.inputs) and self.inputs[at] else None

    def given(self, at: int = 0) -> Shape:
        """Sizes of a result."""
        return self._size(self.outputs[at])

    def _size(self, name: str) -> Shape:
        if name not in self.sizes:
            raise UncountedError(f"the shape of '{name}' is unknown")
        return self.sizes[name]


Formula = Callable[[Sized], int]


def macs_of(node: Sized) -> int:
    """The multiply-accumulates of a node.

    Raises:
        UncountedError: it computes, and it cannot be said how much.
    """
    formula = _formula(node.kind, node.domain)
    if formula is None:
        if _may_compute(node.kind, node.domain):
            raise UncountedError("no formula for this operator")
        return 0
    try:
        return formula(node)
    except UncountedError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UncountedError("its inputs do not go together") from error


def has_formula(kind: str, domain: str) -> bool:
    """Are the multiply-accumulates of an operator counted from sizes around it?"""
    return _formula(kind, domain) is not None


def _formula(kind: str, domain: str) -> Formula | None:
    if domain in _RUNTIME and kind in _ADDED:
        return _ADDED[kind]
    return _STANDARD.get(kind) if domain in (*_ONNX, *_RUNTIME) else None


def _may_compute(kind: str, domain: str) -> bool:
    """May an operator that has no formula do something that counts?"""
    if domain in _ONNX:
        is_text = isinstance(kind, str)  # in a damaged file it may be none
        return kind in _NO_FORMULA or not (is_text and onnx.defs.has(kind))  # of a later version, perhaps
    return domain not in _RUNTIME or kind not in _NOTHING_TO_COUNT


def _convolution(node: Sized) -> int:
    return prod(node.given()) * prod(node.read(_WEIGHT_AT.get(node.kind, 1))[1:])  # weight (out, in / groups, *kernel)


def _transposed_convolution(node: Sized) -> int:
    return prod(node.read(0)) * prod(node.read(1)[1:])  # weight (in, out / groups, *kernel)


def _gemm(node: Sized) -> int:
    return prod(node.given()) * node.read(0)[0 if node.attrs.get("transA") else 1]


def _matmul(node: Sized) -> int:
    """With `transBatchA` the rows come before the batch."""
    rows = 0 if node.attrs.get("transBatchA") else -2
    return prod(node.given()) * node.read(0)[rows if node.attrs.get("transA") else -1]


def _einsum(node: Sized) -> int:
    shapes = [node.read(at) for at in range(len(node.inputs))]
    equation = node.attrs["equation"]
    terms = _letters(equation.decode() if isinstance(equation, bytes) else equation, shapes)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # sizes 1 are repeated
    return prod(sizes.values()) if len(terms) > 1 else 0


def _letters(equation: str, shapes: Sequence[Shape]) -> Sequence[str]:
    spelled = spell_out(equation, [len(shape) for shape in shapes])
    return equation.replace(" ", "").partition("->")[0].split(",") if spelled is None else spelled[0]


def _recurrent(node: Sized) -> int:
    """X (..., in), R (directions, gates * units, units)."""
    *steps, inputs = node.read(0)
    directions, rows, units = node.read(2)
    return prod(steps) * directions * rows * (inputs + units)


def _quantized_recurrent(node: Sized) -> int:
    """R (directions, units, gates * units)."""
    *steps, inputs = node.read(0)
    directions, units, columns = node.read(2)
    return prod(steps) * directions * columns * (inputs + units)


def _attention(node: Sized) -> int:
    """Query, key, value (N, heads, L, d), or (N, L, heads * d) with the numbers of heads beside them; past keys."""
    query, key, value, past = node.read(0), node.read(1), node.read(2), node.optional(4)
    heads = query[1] if len(query) == 4 else node.attrs["q_num_heads"]
    groups = key[1] if len(key) == 4 else node.attrs["kv_num_heads"]
    per_head = query[3] if len(query) == 4 else query[2] // heads
    of_value = value[3] if len(value) == 4 else value[2] // groups
    keys = key[-2] + (0 if past is None else past[2])
    return query[0] * heads * query[-2] * keys * (per_head + of_value)


def _projected_attention(node: Sized) -> int:
    """Input (N, L, in) times weights of queries, keys and values side by side; past (2, N, heads, P, d)."""
    batch, length, inputs = node.read(0)
    columns = node.read(1)[1]
    past = node.optional({"QAttention": 8}.get(node.kind, 4))
    queries, _, values = node.attrs.get("qkv_hidden_sizes") or [columns // 3] * 3
    keys = length + (0 if past is None else past[3])
    return batch * length * (inputs * columns + keys * (queries + values))


def _multi_head_attention(node: Sized) -> int:
    """Query (N, L, D), keys (N, S, D), (N, heads, S, d) or (N, S, heads, 2, d); or all in one (N, L, heads, 3, d)."""
    query, key, past = node.read(0), node.optional(1), node.optional(6)
    hidden = query[2] * query[4] if len(query) == 5 else query[2]
    keys = (query if key is None else key)[2 if key is not None and len(key) == 4 else 1]
    keys += 0 if past is None else past[2]
    return query[0] * query[1] * keys * (hidden + node.given()[2])


def _grouped_query_attention(node: Sized) -> int:
    """The result (N, L, heads * d), and keys (N, groups, S, d), those from before included."""
    batch, length, hidden = node.given()
    return batch * length * node.given(1)[2] * 2 * hidden


_WEIGHT_AT = {"QLinearConv": 3}

#: Of the standard; onnxruntime's of the same name do the same, but for those below.
_STANDARD: dict[str, Formula] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv", "DeformConv"), _convolution),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}

#: What onnxruntime adds.
_ADDED: dict[str, Formula] = {
    **dict.fromkeys(("FusedConv", "NhwcConv", "NhwcFusedConv"), _convolution),
    "ConvTransposeWithDynamicPads": _transposed_convolution,
    **dict.fromkeys(("FusedGemm", "QGemm"), _gemm),
    **dict.fromkeys(("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "GemmFastGelu"), _matmul),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _matmul),
    "DynamicQuantizeLSTM": _quantized_recurrent,
    **dict.fromkeys(("Attention", "QAttention"), _projected_attention),
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_query_attention,
}

#: Operators of the standard that compute and that no formula here covers.
_NO_FORMULA = frozenset({"If", "Loop", "Scan", "LinearAttention", "CausalConvWithState"})

#: Onnxruntime's that neither convolve nor multiply matrices. What is not among them, or of another domain, is unknown.
_NOTHING_TO_COUNT = frozenset(
    "AveragePool BiasAdd BiasGelu BiasSoftmax BiasSplitGelu CropAndResize DequantizeLinear EmbedLayerNormalization "
    "ExpandDims FastGelu GatherND Gelu GlobalAveragePool GlobalMaxPool GridSample GroupNorm MaxPool MaxpoolWithMask "
    "MulInteger NhwcMaxPool Pad QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu "
    "QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Range "
    "ReduceSumInteger ReorderInput ReorderOutput RotaryEmbedding SkipGroupNorm SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization Trilu Unique Upsample".split()
)

"""Matrix products: linear layers, matmul, batched products; what einsum and attention share with them.

    y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n]

The summed dimension of both sides is one set of channels; rows come from a, columns from b, and leading
dimensions (batch, heads) meet as in an element-wise product.
"""

from collections.abc import Sequence
from itertools import product as pairs
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Op, Rule
from graphprune.passes.channels.coupling import any_zero, broadcast
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.movement import permute
from graphprune.passes.channels.value import Facet, Value
from graphprune.passes.channels.zeros import silent_rows


def transpose_last(value: Value) -> Value:
    """Swap the last two dimensions."""
    dims = (*range(value.rank - 2), value.rank - 1, value.rank - 2)
    return value.moved(tuple(value.shape[d] for d in dims), permute(dims))


def settled(analysis: Analysis, value: Value) -> Value:
    """The value with every facet cut along one dimension.

    Channels that are laid out as (heads, channels of a head) lose the same channel of every head, which is the
    finer grain, or with `whole_heads` a head as a whole.
    """
    facets = []
    for facet in value.facets:
        if len(facet.dims) > 1:
            if analysis.whole_heads and any(dim < value.rank - 2 for dim in facet.dims):
                for dim in facet.dims:
                    if dim >= value.rank - 2:
                        analysis.unite(facet.labels, facet.labels.take([0], axis=dim))
            facet = analysis.settle_facet(facet)
        if facet.dims:
            facets.append(facet)
    return Value(value.shape, tuple(facets), value.constant, value.data, value.parameter)


def agree(analysis: Analysis, left: Sequence[Facet], right: Sequence[Facet], dim: int, fixed: Sequence[bool]) -> None:
    """Before two operands are settled: the same choice for both where they are summed over `dim`.

    1. Channels laid out alike, as (heads, channels of a head), are the same ones, whichever way they are cut.
    2. Where one side has no heads (every head reads the same keys), what goes along `dim` goes in every head. A
       parameter of that form (`fixed`) may stay whole instead, and so may anything where heads go as a whole.

    Args:
        analysis: where it is stated.
        left: facets of one operand, in dimensions that both have.
        right: those of the other.
        dim: the summed dimension.
        fixed: is the operand made of parameters alone?
    """
    if all(len(facet.dims) < 2 for facet in (*left, *right)):
        return
    for mine, theirs in pairs(left, right):
        if dim not in mine.dims or dim not in theirs.dims:
            continue
        heads = [set(facet.dims) - {dim} for facet in (mine, theirs)]
        if heads[0] == heads[1]:
            joint = bool(heads[0])  # case 1
        else:
            bare = [n for n in (0, 1) if not heads[n]]
            joint = len(bare) == 1 and not fixed[bare[0]] and not analysis.whole_heads  # case 2
        if joint:
            analysis.unite(mine.labels, theirs.labels)


def agree_on_rows(analysis: Analysis, a: Value, b: Value) -> None:
    """`agree` on the last dimension of (..., m, k) and (..., n, k), as (..., m, n, k)."""
    if all(len(facet.dims) < 2 for facet in (*a.facets, *b.facets)):
        return
    rank = max(a.rank, b.rank) + 1

    def place(value: Value, own: slice) -> list[Facet]:
        def move(array: Any) -> Any:
            rows = [1, 1]
            rows[own] = array.shape[-2:-1]
            return array.reshape(*(1,) * (rank - value.rank - 1), *array.shape[:-2], *rows, array.shape[-1])

        return [facet.map(move) for facet in value.facets]

    agree(analysis, place(a, slice(0, 1)), place(b, slice(1, 2)), rank - 1, (a.constant, b.constant))


def contract_pair(analysis: Analysis, op: Op, left: Axis | None, right: Axis | None) -> None:
    """The summed dimension: both sides are cut together, or neither."""
    if left is not None and right is not None:
        analysis.unite(left.labels, right.labels)
        analysis.contract(left.labels, left.zero | right.zero, op)
        return
    one = left if left is not None else right
    if one is not None:
        analysis.freeze(one.labels, op, "is multiplied with a tensor that cannot be cut")


def product(analysis: Analysis, op: Op, a: Value, b: Value) -> Value:
    """The coupling of a matrix product; both operands have rank 2 or more."""
    agree_on_rows(analysis, a, transpose_last(b))
    a, b = settled(analysis, a), settled(analysis, b)
    rank = max(a.rank, b.rank)
    a_k, b_k = analysis.axis(a, -1), analysis.axis(b, -2)
    if a_k is None and b_k is not None and b.constant:
        analysis.space.freeze(b_k.labels, None)
    elif b_k is None and a_k is not None and a.constant:
        analysis.space.freeze(a_k.labels, None)
    else:
        contract_pair(analysis, op, a_k, b_k)
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    facets: list[Facet] = []
    rows, columns = analysis.axis(a, -2), analysis.axis(b, -1)
    if rows is not None:
        facets.append(Axis(rows.labels, _rows_zero(a, b_k, rows.zero)).facet(rank, rank - 2))
    if columns is not None:
        facets.append(Axis(columns.labels, _rows_zero(transpose_last(b), a_k, columns.zero)).facet(rank, rank - 1))
    batched = [
        Value((*v.shape[:-2], 1, 1), tuple(f for f in v.facets if all(d < v.rank - 2 for d in f.dims)), v.constant)
        for v in (a, b)
    ]
    batch_op = Op(op.kind, op.name, op.where, op.inputs, op.attrs, ((*shape[:-2], 1, 1),))
    facets.extend(broadcast(analysis, batch_op, batched, any_zero).facets)
    if not b.constant:
        keep_columns(analysis, op, facets)
    result = Value(shape, tuple(facets), constant=a.constant and b.constant)
    product_cost(analysis, op, result, a_k if a_k is not None and b_k is not None else None, a.shape[-1])
    return result


def keep_columns(analysis: Analysis, op: Op, facets: Sequence[Facet]) -> None:
    """With `whole_heads`: where heads may go, channels that all heads have in common stay."""
    rank = len(op.shape)
    heads = [facet for facet in facets if any(dim < rank - 2 for dim in facet.dims)]
    if not analysis.whole_heads or not any((analysis.space.frozen(facet.labels) < 0).any() for facet in heads):
        return
    for facet in facets:
        if facet.dims == (rank - 1,):
            analysis.freeze(facet, op, "heads go as a whole")


def _rows_zero(a: Value, k: Axis | None, fallback: Mask) -> Mask:
    """Per row of `a`: zero in the given numbers, wherever the other side's summed slice is not zero."""
    if a.data is None or a.rank != 2 or k is None or not k.zero.any():
        return fallback
    return silent_rows(a.data, ~k.zero, fallback)


def product_cost(analysis: Analysis, op: Op, result: Value, summed: Axis | None, size: int) -> None:
    """Multiply-accumulates of a product: every element of the result times the summed size."""
    factor = 1 if summed is not None else size
    axes = [] if summed is None else [summed.labels]
    for dim, extent in enumerate(result.shape):
        axis = analysis.axis(result, dim)
        if axis is None:
            factor *= extent
        else:
            axes.append(axis.labels)
    analysis.cost(op, float(factor), axes)


def linear(analysis: Analysis, op: Op) -> list[Value]:
    """`x @ weight.T + bias`; weight (out, in)."""
    x, weight = op.value("input"), op.value("weight")
    analysis.outputs_along(weight, 0)
    lifted = x if x.rank > 1 else x.moved((1, *x.shape), lambda array: array[None])
    result = product(analysis, op, lifted, transpose_last(weight))
    if x.rank == 1:
        result = result.moved(result.shape[1:], lambda array: array[0])
    return [biased(analysis, op, result)]


def biased(analysis: Analysis, op: Op, result: Value) -> Value:
    """The result of a product with the operator's bias added, if it has one."""
    bias = op.optional("bias")
    if bias is None:
        return result
    return broadcast(analysis, op, [result, bias], lambda zeros: _both(zeros))


def _both(zeros: Any) -> Any:
    return False if zeros[0] is None or zeros[1] is None else zeros[0] & zeros[1]


def matmul(analysis: Analysis, op: Op) -> list[Value]:
    """`a @ b`, batched or not; vectors are lifted to matrices."""
    a, b = op.value("input"), op.value("other")
    analysis.outputs_along(a, -2)
    analysis.outputs_along(b, -1)
    left = a if a.rank > 1 else a.moved((1, *a.shape), lambda array: array[None])
    right = b if b.rank > 1 else b.moved((*b.shape, 1), lambda array: array[..., None])
    result = product(analysis, op, left, right)
    if a.rank == 1:
        result = result.moved((*result.shape[:-2], result.shape[-1]), lambda array: array[..., 0, :])
    if b.rank == 1:
        result = result.moved(result.shape[:-1], lambda array: array[..., 0])
    return [result]


def addmm(analysis: Analysis, op: Op) -> list[Value]:
    """`bias + a @ b`."""
    analysis.outputs_along(op.value("other"), -1)
    return [biased(analysis, op, product(analysis, op, op.value("input"), op.value("other")))]


def gemm(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX Gemm: `op(a) @ op(b) + c` with optional transposition of each side."""
    a, b = op.value("input"), op.value("other")
    analysis.outputs_along(b, 0 if op.attrs.get("transB", 0) else 1)
    if op.attrs.get("transA", 0):
        a = transpose_last(a)
    if op.attrs.get("transB", 0):
        b = transpose_last(b)
    return [biased(analysis, op, product(analysis, op, a, b))]


def _last(op: Op) -> int:
    return len(op.shape) - 1


RULES = (
    Rule("linear", linear, aten={"linear": Binding()}, sums=_last),
    Rule(
        "matrix product",
        matmul,
        aten={"matmul": Binding(), "mm": Binding(names={"other": "mat2"}), "bmm": Binding(names={"other": "mat2"})},
        onnx={"MatMul": Binding(inputs=("input", "other"))},
        sums=_last,
    ),
    Rule(
        "matrix product with bias",
        addmm,
        aten={"addmm": Binding(names={"bias": "self", "input": "mat1", "other": "mat2"})},
    ),
    Rule("general matrix product", gemm, onnx={"Gemm": Binding(inputs=("input", "other", "bias"))}, sums=_last),
)

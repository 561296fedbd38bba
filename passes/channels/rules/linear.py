"""Matrix products: linear layers, matmul, batched products, scaled dot-product attention.

    y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n]

The summed dimension of both sides is one set of channels; rows come from a, columns from b, and leading
dimensions (batch, heads) meet as in an element-wise product.
"""

from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import any_zero, broadcast
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.movement import permute
from graphprune.passes.channels.value import Facet, Value
from graphprune.passes.channels.zeros import silent_rows


def transpose_last(value: Value) -> Value:
    """Swap the last two dimensions."""
    dims = (*range(value.rank - 2), value.rank - 1, value.rank - 2)
    return value.moved(tuple(value.shape[d] for d in dims), permute(dims))


def _settled(analysis: Analysis, value: Value) -> Value:
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
    a, b = _settled(analysis, a), _settled(analysis, b)
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
    result = Value(shape, tuple(facets), constant=a.constant and b.constant)
    product_cost(analysis, op, result, a_k if a_k is not None and b_k is not None else None, a.shape[-1])
    return result


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
    lifted = x if x.rank > 1 else x.moved((1, *x.shape), lambda array: array[None])
    result = product(analysis, op, lifted, transpose_last(weight))
    if x.rank == 1:
        result = result.moved(result.shape[1:], lambda array: array[0])
    return [_biased(analysis, op, result)]


def _biased(analysis: Analysis, op: Op, result: Value) -> Value:
    bias = op.optional("bias")
    if bias is None:
        return result
    return broadcast(analysis, op, [result, bias], lambda zeros: _both(zeros))


def _both(zeros: Any) -> Any:
    return False if zeros[0] is None or zeros[1] is None else zeros[0] & zeros[1]


def matmul(analysis: Analysis, op: Op) -> list[Value]:
    """`a @ b`, batched or not; vectors are lifted to matrices."""
    a, b = op.value("input"), op.value("other")
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
    return [_biased(analysis, op, product(analysis, op, op.value("input"), op.value("other")))]


def gemm(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX Gemm: `op(a) @ op(b) + c` with optional transposition of each side."""
    a, b = op.value("input"), op.value("other")
    if op.attrs.get("transA", 0):
        a = transpose_last(a)
    if op.attrs.get("transB", 0):
        b = transpose_last(b)
    return [_biased(analysis, op, product(analysis, op, a, b))]


def attention(analysis: Analysis, op: Op) -> list[Value]:
    """softmax(q k^T / sqrt(d)) v: q and k are cut together along d, heads together everywhere.

    Shapes: query (..., heads, L, d), key (..., heads, S, d), value (..., heads, S, dv).
    """
    q, k, v = (_settled(analysis, op.value(name)) for name in ("query", "key", "value"))
    contract_pair(analysis, op, analysis.axis(q, -1), analysis.axis(k, -1))
    for name, value in (("key", k), ("value", v)):
        axis = analysis.axis(value, -2)
        if axis is not None:
            analysis.freeze(axis.labels, op, f"softmax over the {name}s' positions")
    rank = len(op.shape)
    facets = []
    for value, dim in ((q, rank - 2), (v, rank - 1)):
        axis = analysis.axis(value, dim - rank)
        if axis is not None:
            facets.append(axis.facet(rank, dim))
    mask = op.optional("attn_mask")
    if mask is not None:  # a bias of every head meets the heads; along positions it cannot be cut
        mask = _settled(analysis, mask)
        positions = tuple(f for f in mask.facets if any(d >= mask.rank - 2 for d in f.dims))
        analysis.freeze_value(mask.with_facets(positions), op, "attention mask over positions")
    parts = [
        Value((*x.shape[:-2], 1, 1), tuple(f for f in x.facets if all(d < x.rank - 2 for d in f.dims)), x.constant)
        for x in (v, q, k, mask)
        if x is not None
    ]
    lead = Op(op.kind, op.name, op.where, op.inputs, op.attrs, ((*op.shape[:-2], 1, 1),))
    facets.extend(broadcast(analysis, lead, parts, lambda zeros: zeros[0] if zeros[0] is not None else False).facets)
    result = Value(op.shape, tuple(facets))
    scores = result.with_facets(tuple(f for f in result.facets if rank - 1 not in f.dims))
    q_axis = analysis.axis(q, -1)
    product_cost(analysis, op, Value((*op.shape[:-1], k.shape[-2]), scores.facets), q_axis, q.shape[-1])
    product_cost(analysis, op, result, None, k.shape[-2])
    return [result]


def resize_attention(op: Op, cut: Cut) -> dict[str, Any]:
    """The default scale is 1/sqrt(d) of the size before the cut; after it, it must be said."""
    q = op.value("query")
    if cut.kept("query", q.rank - 1) is None or op.attrs.get("scale") is not None:
        return {}
    return {"scale": q.shape[-1] ** -0.5}


def einsum(analysis: Analysis, op: Op) -> list[Value]:
    """Sum of products by letters: a letter of the result meets as in a product, any other is summed over.

    Source: torch.einsum. Equations with "..." or a letter twice in one operand freeze what they touch.
    """
    values = op.values()
    left, _, right = str(op.attrs["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or not right or any(len(set(term)) != len(term) for term in terms) or len(terms) != len(values):
        for value in values:
            analysis.freeze_value(value, op, "an einsum of this form has no rule")
        return [Value(shape) for shape in op.out_shapes]
    values = [_settled(analysis, value) for value in values]
    facets: list[Facet] = []
    factor, axes = 1, []
    for letter in dict.fromkeys("".join(terms)):
        size = next(v.shape[t.index(letter)] for t, v in zip(terms, values, strict=True) if letter in t)
        found = [analysis.axis(v, t.index(letter)) for t, v in zip(terms, values, strict=True) if letter in t]
        merged = _merged_letter(analysis, op, found, letter in right)
        if merged is None:
            factor *= size
            continue
        axes.append(merged.labels)
        if letter in right:
            facets.append(merged.facet(len(right), right.index(letter)))
    if len(terms) > 1:
        analysis.cost(op, float(factor), axes)
    return [Value(op.shape, tuple(facets), constant=all(v.constant for v in values))]


def _merged_letter(analysis: Analysis, op: Op, found: list[Axis | None], in_result: bool) -> Axis | None:
    present = [axis for axis in found if axis is not None]
    if not present:
        return None
    if len(present) < len(found):  # an operand that cannot be cut along this letter
        for axis in present:
            analysis.freeze(axis.labels, op, "is multiplied with a tensor that cannot be cut")
        return None
    zero = np.logical_or.reduce([axis.zero for axis in present])
    for axis in present[1:]:
        analysis.unite(present[0].labels, axis.labels)
    if not in_result:
        analysis.contract(present[0].labels, zero, op)
    return Axis(present[0].labels, zero)


def _read_einsum(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    equation = attrs["equation"]
    return {"equation": equation.decode() if isinstance(equation, bytes) else equation}


def onnx_attention(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX Attention with heads as a dimension of their own; of another form, all it touches is frozen."""
    q, k = op.value("query"), op.value("key")
    cached = op.optional("past_key") is not None or len(op.out_shapes) > 1
    if q.rank == 4 and q.shape[1] == k.shape[1] and not cached:
        return attention(analysis, op)
    for value in op.values():
        analysis.freeze_value(value, op, "attention of this form has no rule")
    return [Value(shape) for shape in op.out_shapes]


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
    Rule(
        "einsum",
        einsum,
        aten={"einsum": Binding()},
        onnx={"Einsum": Binding(inputs=("tensors...",), read=_read_einsum)},
    ),
    Rule("attention", attention, resize_attention, aten={"scaled_dot_product_attention": Binding()}),
    Rule(
        "attention with a cache",
        onnx_attention,
        resize_attention,
        onnx={"Attention": Binding(inputs=("query", "key", "value", "attn_mask", "past_key", "past_value"))},
    ),
)

"""Scaled dot-product attention.

    softmax(q k^T / sqrt(d)) v

Queries and keys are cut together along d; heads go together everywhere; the values' own channels come out.
"""

from typing import Any

from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import broadcast
from graphprune.passes.channels.movement import repeat_each
from graphprune.passes.channels.rules.linear import agree_on_rows, contract_pair, keep_columns, product_cost, settled
from graphprune.passes.channels.value import Value


def attention(analysis: Analysis, op: Op) -> list[Value]:
    """softmax(q k^T / sqrt(d)) v: q and k are cut together along d, heads together everywhere.

    Shapes: query (..., heads, L, d), key (..., heads, S, d), value (..., heads, S, dv); keys and values may have fewer
    heads, each of which serves as many queries' heads in a row (grouped queries).
    """
    q, *rest = (op.value(name) for name in ("query", "key", "value"))
    k, v = (_for_every_head(q, value) for value in rest)
    agree_on_rows(analysis, q, k)
    q, k, v = (settled(analysis, value) for value in (q, k, v))
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
        mask = settled(analysis, mask)
        positions = tuple(f for f in mask.facets if any(d >= mask.rank - 2 for d in f.dims))
        analysis.freeze_value(mask.with_facets(positions), op, "attention mask over positions")
    parts = [
        Value((*x.shape[:-2], 1, 1), tuple(f for f in x.facets if all(d < x.rank - 2 for d in f.dims)), x.constant)
        for x in (v, q, k, mask)
        if x is not None
    ]
    lead = Op(op.kind, op.name, op.where, op.inputs, op.attrs, ((*op.shape[:-2], 1, 1),))
    facets.extend(broadcast(analysis, lead, parts, lambda zeros: zeros[0] if zeros[0] is not None else False).facets)
    keep_columns(analysis, op, facets)
    result = Value(op.shape, tuple(facets))
    scores = result.with_facets(tuple(f for f in result.facets if rank - 1 not in f.dims))
    q_axis = analysis.axis(q, -1)
    product_cost(analysis, op, Value((*op.shape[:-1], k.shape[-2]), scores.facets), q_axis, q.shape[-1])
    product_cost(analysis, op, result, None, k.shape[-2])
    return [result]


def _for_every_head(query: Value, value: Value) -> Value:
    """Keys or values with as many heads as the queries: each stands several times in a row where they have fewer."""
    if query.rank < 3 or value.rank != query.rank or value.shape[-3] in (1, query.shape[-3]):
        return value
    dim, count = value.rank - 3, query.shape[-3] // value.shape[-3]
    shape = (*value.shape[:dim], query.shape[dim], *value.shape[dim + 1 :])
    return value.moved(shape, repeat_each(dim, count))


def resize_attention(op: Op, cut: Cut) -> dict[str, Any]:
    """The default scale is 1/sqrt(d) of the size before the cut; after it, it must be said."""
    q = op.value("query")
    if cut.kept("query", q.rank - 1) is None or op.attrs.get("scale") is not None:
        return {}
    return {"scale": q.shape[-1] ** -0.5}


def has_heads(op: Op) -> bool:
    """Does ONNX's Attention have heads as a dimension of their own, and no cache?"""
    return op.value("query").rank == 4 and op.optional("past_key") is None and len(op.out_shapes) == 1


_INPUTS = ("query", "key", "value", "attn_mask", "past_key", "past_value")

RULES = (
    Rule(
        "attention",
        attention,
        resize_attention,
        aten={"scaled_dot_product_attention": Binding()},
        onnx={"Attention": Binding(inputs=_INPUTS, covers=has_heads)},
    ),
)

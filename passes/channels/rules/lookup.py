"""Embedding tables and tensors made from nothing."""

from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.value import Facet, Value


def embedding(analysis: Analysis, op: Op) -> list[Value]:
    """Rows of a table (V, D): D are channels, V is not."""
    weight = op.value("weight")
    axis = analysis.axis(weight, 1)
    facets: tuple[Facet, ...] = () if axis is None else (axis.facet(len(op.shape), len(op.shape) - 1),)
    weights = op.optional("per_sample_weights")
    if weights is not None:
        analysis.freeze_value(weights, op, "weighs rows of a table")
    return [Value(op.shape, facets)]


def create(analysis: Analysis, op: Op) -> list[Value]:
    """Literals (zeros, arange, ...): nothing in them can be cut; an argument only gives their precision."""
    for value in op.values():
        for facet in value.facets:
            analysis.drop(facet.labels)
    known = np.zeros(()) if op.attrs.get("zeros") else None
    return [
        Value(shape, constant=True, data=None if known is None else np.broadcast_to(known, shape))
        for shape in op.out_shapes
    ]


def shape_of(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX Shape and Size: numbers about a tensor, which carry none of its channels."""
    for value in op.values():
        for facet in value.facets:
            analysis.drop(facet.labels)
    return [Value(shape, constant=True, data=_known_shape(op)) for shape in op.out_shapes]


def _known_shape(op: Op) -> Any:
    return op.attrs.get("result")


_LITERALS = ("ones full empty arange scalar_tensor eye linspace rand randn new_ones new_full new_empty").split()

RULES = (
    Rule("embedding", embedding, aten={"embedding": Binding(), "embedding_bag": Binding()}),
    Rule(
        "literal",
        create,
        aten={
            **{name: Binding() for name in _LITERALS},
            **{name: Binding(fixed={"zeros": True}) for name in ("zeros", "new_zeros")},
        },
        onnx={name: Binding() for name in ("ConstantOfShape", "Range")},
    ),
    Rule("shape", shape_of, onnx={"Shape": Binding(inputs=("input",)), "Size": Binding(inputs=("input",))}),
)

"""Embedding tables and tensors made from nothing."""

from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Op, Rule
from graphprune.passes.channels.rules.reshape import resize_shape
from graphprune.passes.channels.value import Facet, Value


def embedding(analysis: Analysis, op: Op) -> list[Value]:
    """Rows of a table (V, D): D are channels, V is not."""
    weight = op.value("weight")
    analysis.outputs_along(weight, 1)
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
    return [Value(shape, constant=True) for shape in op.out_shapes]


def filled(analysis: Analysis, op: Op) -> list[Value]:
    """One number everywhere: every dimension can be cut, and the sizes follow.

    A tensor whose type or device it takes over has no more to do with it.
    """
    for value in op.values():
        for facet in value.facets:
            analysis.drop(facet.labels)
    number = op.attrs.get("value")
    zero = number is None or not np.any(number)
    facets = []
    for dim, size in enumerate(op.shape):
        if size > 1:
            labels = analysis.space.fresh(size)
            facets.append(Axis(labels, np.full(size, zero)).facet(len(op.shape), dim))
    return [Value(op.shape, tuple(facets), constant=True)]


def shape_of(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX Shape and Size: numbers about a tensor, which carry none of its channels."""
    for value in op.values():
        for facet in value.facets:
            analysis.drop(facet.labels)
    return [Value(shape, constant=True, data=_known_shape(op)) for shape in op.out_shapes]


def _known_shape(op: Op) -> Any:
    return op.attrs.get("result")


_LITERALS = ("arange", "scalar_tensor", "eye", "linspace", "rand", "randn")


def _filling(number: float, **names: str) -> Binding:
    return Binding(names={"shape": "size", **names}, fixed={"value": number})


RULES = (
    Rule("embedding", embedding, aten={"embedding": Binding(), "embedding_bag": Binding()}),
    Rule(
        "literal",
        create,
        aten={name: Binding() for name in _LITERALS},
        onnx={name: Binding() for name in ("Range", "RandomNormal", "RandomUniform")},
    ),
    Rule(
        "filling",
        filled,
        resize_shape,
        aten={
            **{name: _filling(0) for name in ("zeros", "new_zeros")},
            **{name: _filling(1) for name in ("ones", "new_ones", "empty", "new_empty")},
            **{name: _filling(1, value="fill_value") for name in ("full", "new_full")},
        },
        onnx={"ConstantOfShape": Binding(inputs=("shape",))},
        measures=("input",),
    ),
    Rule(
        "shape",
        shape_of,
        onnx={"Shape": Binding(inputs=("input",)), "Size": Binding(inputs=("input",))},
        measures=("input",),
    ),
)

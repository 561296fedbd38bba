"""Sizes of operators that onnx does not define: those of onnxruntime, told by standard operators in their place."""

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from graphprune.passes.channels.operators import Like
from graphprune.passes.channels.rules import ONNX
from graphprune.passes.onnx.model import attributes, operator_name, shape_types

#: Domains of layouts that belong to one kind of processor: weights lie in blocks, sizes are those of whole blocks.
_LAYOUTS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")

#: Version of the standard that stand-ins are of: the last in which reductions have their axes as an attribute.
_OPSET, _IR = 13, 8

#: Operators without a rule of which the sizes are clear all the same.
_SIZES: dict[str, Like] = {
    **dict.fromkeys(
        ("com.microsoft.BiasSoftmax", "com.microsoft.QLinearWhere", "com.microsoft.RotaryEmbedding"), Like("Identity")
    ),
}


def layout_operators(model: ir.Model) -> list[str]:
    """The operators of a file that are written for one processor's layout of memory, each once."""
    found = (operator_name(node) for node in model.graph if node.domain in _LAYOUTS)
    return list(dict.fromkeys(found))


def like_of(node: ir.Node) -> Like | None:
    """How the sizes of an operator are told; None where onnx defines it, or where nobody knows."""
    kind = operator_name(node)
    return _SIZES.get(kind) or (ONNX[kind][1].like if kind in ONNX else None)


def sizes_like(node: ir.Node, like: Like, sizes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The sizes of the results of a node, from those of its inputs; None where they do not follow.

    Raises:
        InferenceError: the inputs do not go together.
    """
    given, attrs = attributes(node), dict(node.attributes)
    schema = onnx.defs.get_schema(like.kind, _OPSET, "")
    types: dict[str, onnx.TypeProto] = {}
    names = []
    taken = range(len(sizes))[like.inputs] if isinstance(like.inputs, slice) else like.inputs
    for place, at in enumerate(taken):
        shape = sizes[at] if at < len(sizes) else None
        names.append("" if shape is None else f"i{place}")
        if shape is not None:
            arranged = shape if like.arrange is None else like.arrange(given, place, shape)
            types[names[-1]] = shape_types(arranged, ir.DataType.FLOAT)
    kept = [ir.serde.serialize_attribute(value) for name, value in attrs.items() if name in schema.attributes]
    proto = onnx.NodeProto(op_type=like.kind, input=names, output=["o"], attribute=kept)
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    found = onnx.shape_inference.infer_node_outputs(schema, proto, types, {}, opset_imports=opsets, ir_version=_IR)
    dims = found["o"].tensor_type.shape.dim if "o" in found and found["o"].tensor_type.HasField("shape") else None
    if dims is None or not all(dim.HasField("dim_value") for dim in dims):
        return None
    shape = tuple(dim.dim_value for dim in dims)
    return shape if like.restore is None else like.restore(given, shape)

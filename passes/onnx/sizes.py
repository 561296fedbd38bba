"""Sizes of what one node gives, by onnx's own inference.

Onnx does not define the operators that onnxruntime adds to it: a standard one stands in for them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphprune.passes.channels.operators import Like
from graphprune.passes.channels.rules import ONNX

Shape = tuple[int, ...]

#: What inference raises when a node is not as its operator's definition says, or when there is none.
INFERENCE_ERRORS = (
    *(onnx.shape_inference.InferenceError, onnx.defs.SchemaError, onnx.checker.ValidationError),
    *(KeyError, ValueError, TypeError, RuntimeError),
)

#: Onnxruntime's own operators, and those of layouts that belong to one kind of processor: weights lie in blocks there.
RUNTIME = "com.microsoft"
_LAYOUTS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")

#: Version of the standard that stand-ins are of: the last in which reductions have their axes as an attribute.
_OPSET, _IR = 13, 8


#: Before, onnx counts a last window that lies in the padding alone (`ceil_mode`); onnxruntime never makes it.
_COUNTED_RIGHT_SINCE = {"MaxPool": 22, "AveragePool": 22, "LpPool": 22}


def operator_name(node: "ir.Node | onnx.NodeProto") -> str:
    """What the rule table calls an operator: its type, after its domain where that is not the standard's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def layout_operators(model: ir.Model) -> list[str]:
    """The operators of a file that are written for one processor's layout of memory, each once."""
    found = (operator_name(node) for node in model.graph if node.domain in _LAYOUTS)
    return list(dict.fromkeys(found))


def infer_results(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    numbers: Mapping[str, onnx.TensorProto],
    opsets: Mapping[str, int],
    ir_version: int,
) -> dict[str, onnx.TypeProto]:
    """The types of a node's results, by name, as far as they follow from those of its inputs.

    Args:
        node: any node without bodies that read what is outside of them.
        types: of its inputs, by name.
        numbers: those of its inputs that are known and may matter (sizes, axes).
        opsets: the versions that the model is written in.
        ir_version: of the model.

    Raises:
        one of `INFERENCE_ERRORS`: its inputs do not go together, or nobody knows the operator.
    """
    if (like := _like_of(node)) is not None:
        return _results_like(node, like, types)
    if (rule := _SIZES.get(operator_name(node))) is not None:
        given = [sizes_of(types.get(name)) for name in node.input]
        first = rule(_attributes(node), [*given, *[None] * 8])
        kind = types[node.input[0]].tensor_type.elem_type
        return {node.output[0]: onnx.helper.make_tensor_type_proto(kind, first)}
    version = max(opsets.get(node.domain) or opsets.get("", 1), _COUNTED_RIGHT_SINCE.get(node.op_type, 0))
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    ids = [onnx.helper.make_opsetid(domain, number) for domain, number in opsets.items()]
    return onnx.shape_inference.infer_node_outputs(
        schema, node, dict(types), dict(numbers), opset_imports=ids, ir_version=ir_version
    )


def is_known(node: "ir.Node | onnx.NodeProto") -> bool:
    """Is an operator one of the standard, or of onnxruntime's?"""
    if node.domain in ("", "ai.onnx"):
        return isinstance(node.op_type, str) and bool(onnx.defs.has(node.op_type))  # bytes in a damaged file
    return node.domain.startswith(("ai.onnx", "com.microsoft", "com.ms."))


def sizes_of(kind: onnx.TypeProto | None) -> Shape | None:
    """The sizes that a type states, if it states all of them."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _like_of(node: onnx.NodeProto) -> Like | None:
    """How the sizes of an operator that onnx does not define are told, if at all."""
    kind = operator_name(node)
    return ONNX[kind][1].like if kind in ONNX else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _results_like(node: onnx.NodeProto, like: Like, types: Mapping[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
    attrs = _attributes(node)
    schema = onnx.defs.get_schema(like.kind, _OPSET, "")
    taken = range(len(node.input))[like.inputs] if isinstance(like.inputs, slice) else like.inputs
    given: dict[str, onnx.TypeProto] = {}
    names = []
    for place, at in enumerate(taken):
        sizes = sizes_of(types.get(node.input[at])) if at < len(node.input) and node.input[at] else None
        names.append("" if sizes is None else f"i{place}")
        if sizes is not None:
            arranged = sizes if like.arrange is None else like.arrange(attrs, place, sizes)
            # Real numbers, whatever it has: the definitions of many operators know no others.
            given[names[-1]] = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, arranged)
    kept = [attribute for attribute in node.attribute if attribute.name in schema.attributes]
    proto = onnx.NodeProto(op_type=like.kind, input=names, output=["o"], attribute=kept)
    ids = [onnx.helper.make_opsetid("", _OPSET)]
    found = onnx.shape_inference.infer_node_outputs(schema, proto, given, {}, opset_imports=ids, ir_version=_IR)
    sizes = sizes_of(found.get("o"))
    if sizes is None:
        return {}
    if like.restore is not None:
        sizes = like.restore(attrs, sizes)
    read = [types[node.input[at]] for at in like.numbers if at < len(node.input) and node.input[at] in types]
    kind = read[0].tensor_type.elem_type if read else onnx.TensorProto.FLOAT
    return {name: onnx.helper.make_tensor_type_proto(kind, sizes) for name in node.output}


def _same(attrs: Mapping[str, Any], sizes: Sequence[Shape | None]) -> Shape:
    return _known(sizes[0])


def _attended(attrs: Mapping[str, Any], sizes: Sequence[Shape | None]) -> Shape:
    """Of Attention: input (B, S, D), weights of queries, keys and values side by side."""
    batch, length, _ = _known(sizes[0])
    hidden = attrs.get("qkv_hidden_sizes")
    return (batch, length, hidden[2] if hidden else _known(sizes[1])[1] // 3)


def _attended_by_heads(attrs: Mapping[str, Any], sizes: Sequence[Shape | None]) -> Shape:
    """Of MultiHeadAttention: query (B, S, D) or (B, S, N, 3, H), value (B, L, D) or (B, N, L, H), or with the key."""
    query, key, value = sizes[:3]
    batch, length, *rest = _known(query)
    if len(rest) == 3:
        return (batch, length, rest[0] * rest[2])
    if value is None:
        _, _, heads, _, size = _known(key)
        return (batch, length, heads * size)
    return (batch, length, value[2] if len(value) == 3 else value[1] * value[3])


def _known(sizes: Shape | None) -> Shape:
    if sizes is None:
        raise ValueError("unknown sizes")
    return sizes


#: Operators without a rule of which the sizes of the first result are clear all the same.
_SIZES: dict[str, Callable[[Mapping[str, Any], Sequence[Shape | None]], Shape]] = {
    f"{RUNTIME}.{name}": rule
    for rule, names in (
        (_same, ("BiasSoftmax", "RotaryEmbedding", "BiasAdd", "GroupNorm", "SkipGroupNorm")),
        (_attended, ("Attention", "QAttention")),
        (_attended_by_heads, ("MultiHeadAttention",)),
    )
    for name in names
}

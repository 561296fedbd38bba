"""Operators of other domains, and functions, that have a rule: their sizes and costs, of which onnx knows none."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx
import onnx_ir as ir

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.rules import TABLE
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.macs import Sized, UncountedError
from graphprune.passes.onnx.operators import bind
from graphprune.passes.onnx.sizes import is_known, operator_name

Shape = tuple[int, ...]
Found = tuple[Rule, Binding]


def result_types(
    model: ir.Model,
    node: ir.Node,
    inputs: Sequence[ir.Value],
    types: Sequence[onnx.TypeProto],
    op: Callable[[Found], Op],
) -> list[tuple[ir.DataType, Shape]] | None:
    """Type of numbers and sizes of each result of an operator that onnx does not know; None where nobody says them.

    1. A function's body says them.
    2. The rule says the sizes; the numbers are of the first input's type.

    Args:
        model: the model.
        node: the operator.
        inputs: what it reads, without what is left out.
        types: of these.
        op: the operator in the words of a rule.
    """
    if node.op_identifier() in model.functions:  # case 1
        return _by_body(model, node, {str(v.name): kind for v, kind in zip(inputs, types, strict=True)})
    found = TABLE.onnx_rule(operator_name(node))
    if found is None or found[0].shapes is None or not types:
        return None
    kind = ir.DataType(types[0].tensor_type.elem_type)  # case 2
    shapes = [tuple(shape) for shape in found[0].shapes(op(found))]
    return [(kind, shape) for shape in shapes] if len(shapes) == len(node.outputs) else None


def _by_body(
    model: ir.Model, node: ir.Node, types: Mapping[str, onnx.TypeProto]
) -> list[tuple[ir.DataType, Shape]] | None:
    """What onnx infers of a model that is this call alone."""
    call = ir.serde.serialize_node(node)
    graph = onnx.helper.make_graph(
        [call],
        "call",
        [onnx.ValueInfoProto(name=name, type=kind) for name, kind in types.items()],
        [onnx.ValueInfoProto(name=name) for name in call.output],
    )
    alone = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, n) for domain, n in model.opset_imports.items()],
        functions=[ir.serde.serialize_function(function) for function in model.functions.values()],
        ir_version=model.ir_version,
    )
    try:
        found = onnx.shape_inference.infer_shapes(alone, data_prop=True).graph.output
    except (onnx.shape_inference.InferenceError, ValueError, TypeError, RuntimeError):
        return None
    tensors = [value.type.tensor_type for value in found]
    if not all(t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim) for t in tensors):
        return None
    return [(ir.DataType(t.elem_type), tuple(d.dim_value for d in t.shape.dim)) for t in tensors]


def is_own(node: onnx.NodeProto) -> bool:
    """Has an operator of another domain a rule, and no formula of its own for what it costs?"""
    return not is_known(node) and TABLE.onnx_rule(operator_name(node)) is not None


def macs_by_rule(node: onnx.NodeProto, sized: Sized) -> int:
    """Multiply-accumulates of an operator of another domain as its rule states them, for the whole batch.

    Args:
        node: the operator, which has a rule.
        sized: the same with the sizes around it.

    Raises:
        UncountedError: a size is not known, or its inputs do not go together.
    """
    rule, binding = TABLE.onnx[operator_name(node)]
    sizes = [sized.optional(at) for at in range(len(node.input))]
    values = [None if shape is None else Value(shape) for shape in sizes]
    shapes = tuple(sized.given(at) for at in range(len(node.output)))
    attributes = [ir.serde.deserialize_attribute(attribute) for attribute in node.attribute]
    alone = ir.Node(node.domain, node.op_type, [], attributes, num_outputs=len(node.output), name=node.name)
    analysis = Analysis()
    try:
        analysis.run(rule, bind(alone, values, binding, shapes, {"": onnx.defs.onnx_opset_version()}))
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        raise UncountedError("its inputs do not go together") from error
    return round(sum(term.factor * prod(len(axis) for axis in term.axes) for term in analysis.terms))

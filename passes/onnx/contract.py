"""What every pass over an ONNX graph may rely on and has to leave behind."""

import abc
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.onnx.pages import put_aside


class GraphPass(ir.passes.InPlacePass):
    """A pass that changes a model in place, between two checks of it.

    A result's `modified` is true to fact: a pass that says no has changed nothing, and running a pass on its own
    result changes nothing. Bodies of If, Loop and Scan are left as they are.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError unless the graph is whole."""
        if fault := find_fault(model):
            raise ir.passes.PreconditionError(f"{type(self).__name__} is given a broken graph: {fault}")

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError unless the graph is whole."""
        if fault := find_fault(model):
            raise ir.passes.PostconditionError(f"{type(self).__name__} left a broken graph: {fault}")


class NodePass(GraphPass, abc.ABC):
    """A pass that looks at every node of some kinds by itself, in the order of the graph.

    Attributes:
        kinds: operators of the standard domain.
    """

    kinds: ClassVar[frozenset[str]]

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:
        """Rewrite around one node; whether that changed anything."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        modified = False
        for node in list(model.graph):
            if node.op_type in self.kinds and node.domain == "":
                modified = self.rewrite(model, node) or modified
        return ir.passes.PassResult(model, modified)


def find_fault(model: ir.Model) -> str | None:
    """The first thing that is wrong with a graph, or None.

    1. A node reads a value that nothing before it gives.
    2. Two values have one name.
    3. A literal has other sizes than are noted for it, or no numbers.
    4. A Constant gives several values, or one that is no tensor.
    5. An output is given by nothing.
    """
    graph = model.graph
    known: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    names = {value.name for value in known}
    if len(names) != len(known):
        return "two inputs or literals have one name"
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            return f"literal '{value.name}' has no numbers"
        noted = value.shape if value.shape is not None else tensor.shape
        if len(noted) != len(tensor.shape) or any(
            isinstance(n, int) and n != size for n, size in zip(noted, tensor.shape, strict=True)
        ):
            return f"literal '{value.name}' is {tensor.shape}, noted is {value.shape}"
    for node in graph:
        for item in node.inputs:
            if item is not None and item not in known:
                return f"{node.op_type} '{node.name}' reads '{item.name}', which nothing before it gives"
        for item in node.outputs:
            if item.name and item.name in names:
                return f"two values are called '{item.name}'"
            known.add(item)
            names.add(item.name)
        if (node.op_type, node.domain) == ("Constant", "") and not _is_constant(node):
            return f"Constant '{node.name}' does not give one tensor"
    lost = [value.name for value in graph.outputs if value not in known]
    return f"nothing gives the output '{lost[0]}'" if lost else None


def _is_constant(node: ir.Node) -> bool:
    value = node.attributes.get("value")
    return len(node.outputs) == 1 and (value is None or value.type == ir.AttributeType.TENSOR)


#: IR version from which literals need not be inputs as well; one that is may be given another value.
UNLISTED_SINCE = 4


def lists_literals(model: ir.Model) -> bool:
    """Is a model of an old version, in which every literal is listed as an input?"""
    return (model.ir_version or 0) < UNLISTED_SINCE


def is_overridable(model: ir.Model, value: ir.Value) -> bool:
    """May a literal be given another value at run time?"""
    return value.is_graph_input() and not lists_literals(model)


def literal(model: ir.Model, value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a value that is a literal and stays it, stored in the graph or in a Constant node; else None."""
    if value is None:
        return None
    if value.is_initializer():
        return None if is_overridable(model, value) else value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain == "":
        found = producer.attributes.get("value")
        return None if found is None else found.as_tensor()
    return None


def set_literal(value: ir.Value, array: NDArray[Any]) -> None:
    """Give a literal other numbers; it is stored in the graph or in a Constant node, and keeps its type and text."""
    producer = value.producer()
    old = value.const_value if producer is None else producer.attributes["value"].as_tensor()
    assert old is not None
    put_aside(old.numpy())
    tensor = in_form_of(old, array, value.name or "")
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    else:
        value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def is_packed(tensor: ir.TensorProtocol) -> bool:
    """Does a file hold these integers in a length of their own each, which for sizes and places is an eighth?"""
    is_plain = isinstance(tensor, ir.serde.TensorProtoTensor) and not tensor.raw.HasField("raw_data")
    return is_plain and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def in_form_of(old: ir.TensorProtocol, array: NDArray[Any], name: str) -> ir.TensorProtocol:
    """Numbers as a tensor of the type of another one, with its text, and stored in the way that it is."""
    if is_packed(old):
        packed = onnx.helper.make_tensor(name, int(old.dtype), array.shape, array.ravel().tolist())
        packed.doc_string = old.doc_string or ""
        return ir.from_proto(packed)
    # Not ascontiguousarray, which turns a scalar into a list of one.
    return ir.Tensor(np.asarray(array, order="C"), dtype=old.dtype, name=name, doc_string=old.doc_string)


def insert_before(reader: ir.Node, node: ir.Node) -> None:
    """Put a node in front of another, in the graph or in the body that it stands in."""
    where = reader.graph
    assert isinstance(where, ir.Graph)
    where.insert_before(reader, node)


def add_literal(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new literal of the graph, which its bodies see too; its name gets a number where it is taken."""
    taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    taken |= {*model.graph.initializers, *(value.name for value in model.graph.inputs)}
    free, count = name, 1
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    value = ir.Value(
        name=free, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    if lists_literals(model):
        model.graph.inputs.append(value)
    return value

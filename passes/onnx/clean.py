"""Small clean-up passes over ONNX graphs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.operators import is_random
from graphprune.passes.onnx.contract import (
    UNLISTED_SINCE,
    GraphPass,
    NodePass,
    add_literal,
    is_overridable,
    lists_literals,
    literal,
    set_literal,
)
from graphprune.passes.onnx.model import captured_values, evaluate

#: Weights below this are written as 0: denormal numbers make a convolution 20 times slower.
SMALLEST_WEIGHT = 1e-30

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})

#: So many numbers are looked at at a time: they stay in the processor's cache.
_CHUNK = 1 << 17


class ZeroDenormalsPass(GraphPass):
    """Set float weights of magnitude below 1e-30 to zero."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; only tensors that hold such numbers are replaced."""
        modified = False
        inside = [node.outputs[0] for node in model.graph if node.op_type == "Constant" and "value" in node.attributes]
        for value in (*model.graph.initializers.values(), *inside):
            tensor = literal(model, value) if value.const_value is None else value.const_value
            if tensor is None or tensor.dtype not in _FLOATS:
                continue
            array = tensor.numpy()
            if not any(tiny.any() for _, tiny in _tiny(array)):
                continue
            cleaned = np.array(array, order="C")
            for part, tiny in _tiny(array):
                cleaned.reshape(-1)[part][tiny] = 0
            set_literal(value, cleaned)
            modified = True
        return ir.passes.PassResult(model, modified)


def _tiny(array: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """Where numbers are smaller than they may be, but not zero, a part at a time.

    Floats without their sign are ordered like the integers of the same bits; one less, zero is the largest of all.
    """
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    magnitude = unsigned.type(np.iinfo(unsigned).max >> 1)
    limit = np.asarray(SMALLEST_WEIGHT, dtype=array.dtype).view(unsigned) - unsigned.type(1)
    flat = array.reshape(-1).view(unsigned)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, (flat[part] & magnitude) - unsigned.type(1) < limit


class EliminateIdentityPass(NodePass):
    """Remove nodes that give what they read: Identity, and a Relu of a Relu, which a removed branch leaves behind.

    Cases:
        1. the result is no output of the graph: who reads it reads the source.
        2. it is, and the source is computed and no output itself: the source takes its place and name.
        3. else an output would be an input, a literal, or another output under two names: the node stays.
    """

    kinds = frozenset({"Identity", "Relu"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        is_idle = len(node.inputs) == 1 and (node.op_type == "Identity" or _repeats(node))
        return is_idle and _eliminate(model, node)


def _repeats(node: ir.Node) -> bool:
    """A Relu that reads what a Relu gives."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    return node.op_type == "Relu" and before is not None and (before.op_type, before.domain) == ("Relu", "")


def _eliminate(model: ir.Model, node: ir.Node) -> bool:
    (source,), (result,) = node.inputs, node.outputs
    if source is None:
        return False
    if result.is_graph_output():
        if source.producer() is None or source.is_graph_output():
            return False  # case 3
        name = result.name
        result.replace_all_uses_with(source, replace_graph_outputs=True)  # case 2
        source.shape, source.type = result.shape or source.shape, result.type or source.type
        model.graph.remove(node, safe=True)
        source.name = name
        return True
    result.replace_all_uses_with(source)  # case 1
    model.graph.remove(node, safe=True)
    return True


class UnlistLiteralsPass(GraphPass):
    """Bring a model of an old version to the first in which literals are no inputs.

    Tools that add literals, like onnxruntime's quantizer, do not list them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        if not lists_literals(model):
            return ir.passes.PassResult(model, False)
        for value in model.graph.initializers.values():
            if value.is_graph_input():
                model.graph.inputs.remove(value)
        model.ir_version = UNLISTED_SINCE
        return ir.passes.PassResult(model, True)


class FoldLiteralsPass(GraphPass):
    """Compute ahead what depends on literals alone: a weight that is transposed, reshaped or scaled becomes one.

    Only where the result is no larger than what it comes from, so that the file does not grow.

    Args:
        growth: so many times as large it may be: 4 for weights that are stored in bytes and computed with in float32.
    """

    def __init__(self, growth: float = 1) -> None:
        super().__init__()
        self._growth = growth

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        folded = [node for node in list(model.graph) if node.domain == "" and _fold(model, node, self._growth)]
        return ir.passes.PassResult(model, bool(folded))


def _fold(model: ir.Model, node: ir.Node, growth: float) -> bool:
    if is_random(node.op_type) or captured_values(node) or any(value.is_graph_output() for value in node.outputs):
        return False
    read = [value for value in node.inputs if value is not None]
    if not read or any(literal(model, value) is None for value in read):
        return False
    known = {value: tensor.numpy() for value in read if (tensor := literal(model, value)) is not None}
    given = [None if value is None else known[value] for value in node.inputs]
    found = evaluate(node, given, dict(model.graph.opset_imports))
    if found is None or any(result.dtype.kind not in "biuf" for result in found):
        return False
    if sum(result.nbytes for result in found) > growth * sum(array.nbytes for array in known.values()):
        return False
    for value, result in zip(node.outputs, found, strict=True):
        value.replace_all_uses_with(add_literal(model, f"{value.name}_folded", ir.tensor(result)))
    model.graph.remove(node, safe=True)
    return True


class EliminateDeadCodePass(GraphPass):
    """Remove nodes that no output needs, and literals that no node reads, in the graph and in its bodies.

    A literal that the caller may override stays, as it belongs to the model's signature.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        modified = False
        for graph in (*reversed(list(model.graph.subgraphs())), model.graph):  # bodies first: they read what is outside
            for node in reversed(graph):
                if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                    _release(node)
                    graph.remove(node, safe=True)
                    modified = True
            modified = _drop_literals(model, graph) or modified
        return ir.passes.PassResult(model, modified)


def _release(node: ir.Node) -> None:
    """Let the bodies of a node that goes read nothing any more."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                for position in range(len(inner.inputs)):
                    inner.replace_input_with(position, None)


def _drop_literals(model: ir.Model, graph: ir.Graph) -> bool:
    gone = [
        (name, value)
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or is_overridable(model, value))
    ]
    for name, value in gone:
        if value.is_graph_input():
            graph.inputs.remove(value)
        del graph.initializers[name]
    return bool(gone)

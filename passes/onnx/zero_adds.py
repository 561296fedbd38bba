"""Remove additions of zero: a branch that computes nothing but zeros ends where it joins another."""

import numpy as np
import onnx_ir as ir

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.onnx.analyze import OnnxFrontEnd, trace_onnx
from graphprune.passes.onnx.contract import GraphPass, literal
from graphprune.passes.onnx.shared import merge_copies


class EliminateZeroAddsPass(GraphPass):
    """Remove Add and Sub nodes of which one operand is zero throughout, whatever the input.

    That it is zero is known from the channel analysis on the given weights: a literal of zeros, or a value all of whose
    channels are zero. The other operand must have the size of the result.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        found = eliminate_zero_adds(trace_onnx(model, dead=True))
        merge_copies(model)
        return ir.passes.PassResult(model, found)


def eliminate_zero_adds(graph: ChannelGraph) -> bool:
    """As the pass does, given a model traced with `dead=True`; whether there was such a node."""
    front: OnnxFrontEnd = graph.front_end
    found = False
    for node in list(front.ops):
        is_inside = node.graph is not front.model.graph  # bodies are left as they are
        if node.op_type not in ("Add", "Sub") or node.domain != "" or node.outputs[0].is_graph_output() or is_inside:
            continue
        first, second = node.inputs
        pairs = ((first, second), (second, first)) if node.op_type == "Add" else ((first, second),)
        for staying, other in pairs:
            if staying is not None and other is not None and _is_neutral(front, node, staying, other):
                node.outputs[0].replace_all_uses_with(staying)
                front.model.graph.remove(node, safe=True)
                found = True
                break
    return found


def _is_neutral(front: OnnxFrontEnd, node: ir.Node, staying: ir.Value, other: ir.Value) -> bool:
    own, result = front.env.get(staying), front.env.get(node.outputs[0])
    return own is not None and result is not None and own.shape == result.shape and _is_zero(front, other)


def _is_zero(front: OnnxFrontEnd, value: ir.Value) -> bool:
    known = front.env.get(value)
    if known is None or known.zero_point is not None:
        return False
    if any(facet.zero.all() for facet in known.facets):
        return True
    tensor = literal(front.model, value)
    return tensor is not None and tensor.dtype.is_floating_point() and not np.any(tensor.numpy())

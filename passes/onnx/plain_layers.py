"""Bring layers into the form that onnxruntime's quantizer computes rightly with.

    alpha x W + beta c  =  x (alpha W) + (beta c)          Gemm, with one number of the bias for each output

A kernel is quantized with a scale a channel, along one dimension for each operator. Two operators that share a kernel
and take different dimensions for the channels need one each: with the scales of the other, onnxruntime (1.32.0)
computes wrong numbers without a word. Bodies of If, Loop and Scan read values of the graph around them by name: the
quantizer knows nothing of that, renames such values, and forgets to order the nodes by them.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.onnx.contract import GraphPass, NodePass, add_literal, literal

__all__ = ["OwnKernelsPass", "PlainGemmPass", "ShieldBodiesPass", "channel_axis"]

_KERNEL = 1
_BIAS = 2


def channel_axis(kind: str, attributes: Mapping[str, int]) -> int | None:
    """The dimension of a layer's kernel along which it gets one scale each; None where it is no such layer.

    A transposed convolution in groups holds the same outputs of all groups along dimension 1, so that it takes its
    inputs, each of one group.

    Args:
        kind: the operator.
        attributes: of the node, those that are integers.
    """
    if kind == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else 0
    if kind == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return {"Conv": 0, "MatMul": 1}.get(kind)


def _axis_of(node: ir.Node) -> int | None:
    numbers = {name: a.as_int() for name, a in node.attributes.items() if a.type == ir.AttributeType.INT}
    return channel_axis(node.op_type, numbers) if node.domain == "" else None


class PlainGemmPass(NodePass):
    """Take alpha and beta of Gemm nodes into their literals, and give a bias that is a literal one number an output.

    Cases:
        1. The kernel is a literal: alpha goes into it.
        2. The bias is a literal with one number an output, or one for all: beta goes into it, and it is a row.
        3. Something else: it stays as it is.
    """

    kinds = frozenset({"Gemm"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        kernel = literal(model, node.inputs[_KERNEL])
        if kernel is None:
            return False
        changed = False
        if (alpha := _factor(node, "alpha")) != 1:
            _replace(model, node, _KERNEL, kernel.numpy() * alpha)
            changed = True
            node.attributes.pop("alpha")
        bias = literal(model, node.inputs[_BIAS]) if len(node.inputs) > _BIAS else None
        if bias is None:
            return changed
        array, beta, outputs = bias.numpy(), _factor(node, "beta"), kernel.numpy().shape[_axis_of(node) or 0]
        if set(array.shape[:-1]) <= {1} and set(array.shape[-1:]) <= {1, outputs}:
            if beta == 1 and array.shape == (outputs,):
                return changed
            _replace(model, node, _BIAS, np.broadcast_to(array.reshape(-1) * beta, (outputs,)))
            node.attributes.pop("beta", None)
            return True
        return changed


def _factor(node: ir.Node, name: str) -> np.floating | float:
    # A Python float would make a float64 of the literal.
    return np.float32(node.attributes[name].as_float()) if name in node.attributes else 1.0


def _replace(model: ir.Model, node: ir.Node, position: int, array: NDArray) -> None:
    """Give a node another literal; whoever reads the old one keeps it."""
    old = node.inputs[position]
    assert old is not None
    kept = np.asarray(array, dtype=old.const_value.numpy().dtype if old.const_value is not None else None, order="C")
    node.replace_input_with(position, add_literal(model, f"{old.name}_plain", ir.tensor(kept)))


class OwnKernelsPass(GraphPass):
    """Give layers that take other dimensions of a shared literal for their channels a literal of their own.

    Those of one dimension go on sharing one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        modified = False
        for value in list(model.graph.initializers.values()):
            axes: dict[int, list[tuple[ir.Node, int]]] = {}
            for use in value.uses():
                if use.idx < _BIAS and (axis := _axis_of(use.node)) is not None:
                    axes.setdefault(axis, []).append((use.node, use.idx))
            for axis in sorted(axes)[1:]:
                assert value.const_value is not None
                own = add_literal(model, f"{value.name}_along_{axis}", ir.tensor(value.const_value.numpy()))
                for node, position in axes[axis]:
                    node.replace_input_with(position, own)
                modified = True
        return ir.passes.PassResult(model, modified)


class ShieldBodiesPass(GraphPass):
    """Let bodies of If, Loop and Scan read what the graph around them computes through an Identity, biases as copies.

    So every reader of a value stands in the graph itself.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass."""
        modified = False
        for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
            inside = [(use.node, use.idx) for use in value.uses() if use.node.graph is not model.graph]
            if not inside or value.is_initializer() or _is_shield(value):
                continue
            shield = ir.node("Identity", [value])
            shield.outputs[0].name = f"{value.name}_for_bodies"
            shield.outputs[0].shape, shield.outputs[0].type = value.shape, value.type
            producer = value.producer()
            if producer is None:
                model.graph.insert_before(model.graph[0], shield)
            else:
                model.graph.insert_after(producer, shield)
            for node, position in inside:
                node.replace_input_with(position, shield.outputs[0])
            modified = True
        for value in list(model.graph.initializers.values()):
            uses = list(value.uses())
            inside = [(use.node, use.idx) for use in uses if use.node.graph is not model.graph]
            is_bias = any(use.node.graph is model.graph and use.idx == _BIAS for use in uses)
            if inside and is_bias and value.const_value is not None:
                own = add_literal(model, f"{value.name}_for_bodies", ir.tensor(value.const_value.numpy()))
                for node, position in inside:
                    node.replace_input_with(position, own)
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_shield(value: ir.Value) -> bool:
    """Is a value read by bodies alone, through an Identity?"""
    producer = value.producer()
    return producer is not None and producer.op_type == "Identity"

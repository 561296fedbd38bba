"""Fold branches of which all channels went: what they compute is constant, and is added where it is not zero."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.branches import Fate, Step
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.operators import is_random
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.analyze import OnnxFrontEnd
from graphprune.passes.onnx.contract import add_literal, literal
from graphprune.passes.onnx.model import evaluate


def fold_branches(graph: ChannelGraph, removed: Mask) -> None:
    """Replace branches by the constants that they compute, in the analyzed model, whose weights are cut already."""
    fates = graph.fates(removed)
    if fates:
        _Folder(graph, removed).run(fates)


class _Folder:
    def __init__(self, graph: ChannelGraph, removed: Mask) -> None:
        self.graph = graph
        self.removed = removed
        self.front: OnnxFrontEnd = graph.front_end
        self.constants: dict[ir.Value, NDArray[Any]] = {}
        self.computed: dict[ir.Value, NDArray[Any]] = {}  # from literals, outside of the branches
        self.literals: dict[ir.Value, ir.Value] = {}  # of the constants that something reads

    def run(self, fates: dict[int, Fate]) -> None:
        for number in sorted(fates):  # steps stand in the order of computation
            node, step = self.front.nodes[number], self.graph.flow.steps[number]
            if fates[number] is Fate.HEAD:
                self.constants[node.outputs[0]] = self._bias(node, step)
            elif fates[number] is Fate.CONSTANT:
                self._evaluate(node)
            elif fates[number] is Fate.JOIN:
                self._join(node)

    def _bias(self, node: ir.Node, step: Step) -> NDArray[Any]:
        """What an operator gives that sums over nothing: shape (1, ..., channels, ..., 1)."""
        assert step.rule is not None
        assert step.rule.sums is not None
        dim = step.rule.sums(step.op)
        kept = self.graph.cuts(step.results[0], self.removed).get(dim)
        size = step.op.shape[dim] if kept is None else int(kept.sum())
        shape = [size if d == dim else 1 for d in range(len(step.op.shape))]
        bias = step.op.inputs.get("bias")
        if not isinstance(bias, Value):
            kind = self.front.kinds.get(node.outputs[0], ir.DataType.FLOAT)
            return np.zeros(shape, dtype=kind.numpy())
        given = next(value for value in node.inputs if value is not None and self.front.env.get(value) is bias)
        numbers = self._known(given)
        if numbers is None:
            raise UnsupportedModelError(
                f"{node.op_type} ({node.name}): its bias '{given.name}' cannot be computed ahead to fold its branch"
            )
        scaled = (numbers * step.op.attrs.get("beta", 1)).astype(numbers.dtype)  # of a Gemm
        lifted = scaled.reshape((*scaled.shape, *shape[dim + 1 :]))
        return np.broadcast_to(lifted, np.broadcast_shapes(lifted.shape, tuple(shape)))

    def _known(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The numbers of a folded value, of a literal, or of what is computed from such alone; None where unknown."""
        if value is None:
            return None
        found = self.constants.get(value, self.computed.get(value))
        if found is not None:
            return found
        if (tensor := literal(self.front.model, value)) is not None:
            return tensor.numpy()
        producer = value.producer()
        if producer is None or is_random(producer.op_type):
            return None
        inputs = [self._known(item) for item in producer.inputs]
        if any(item is not None and known is None for item, known in zip(producer.inputs, inputs, strict=True)):
            return None
        results = evaluate(producer, inputs, dict(self.front.model.graph.opset_imports))
        self.computed.update(zip(producer.outputs, results or (), strict=False))
        return self.computed.get(value)

    def _evaluate(self, node: ir.Node) -> None:
        opsets = dict(self.front.model.graph.opset_imports)
        results = evaluate(node, [self._known(value) for value in node.inputs], opsets)
        if results is None:
            raise UnsupportedModelError(f"{node.op_type} ({node.name}): cannot be computed ahead to fold its branch")
        self.constants.update(zip(node.outputs, results, strict=True))

    def _join(self, node: ir.Node) -> None:
        """Add the constant, or nothing where it is zero."""
        staying = [value for value in node.inputs if value is not None and value not in self.constants]
        folded = [value for value in node.inputs if value is not None and value in self.constants]
        if node.op_type == "Add" and len(staying) == 1 and not any(self.constants[value].any() for value in folded):
            output = node.outputs[0]
            if not output.is_graph_output():
                output.replace_all_uses_with(staying[0])
                return
        for position, value in enumerate(node.inputs):
            if value is None or value not in self.constants:
                continue
            if value not in self.literals:
                array = np.asarray(self.constants[value], order="C")
                self.literals[value] = add_literal(self.front.model, f"{value.name}_constant", ir.tensor(array))
            node.replace_input_with(position, self.literals[value])

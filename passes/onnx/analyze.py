"""Channel analysis of an ONNX graph: the same labels and rules as for torch graphs."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.branches import Step
from graphprune.passes.channels.cost import samples_in
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.rules import TABLE
from graphprune.passes.channels.value import Value
from graphprune.passes.channels.zeros import zero_slices
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.bodies import is_known_body, name_apart, walk_bodies
from graphprune.passes.onnx.contract import is_overridable
from graphprune.passes.onnx.facts import Facts
from graphprune.passes.onnx.layout import SELECTS
from graphprune.passes.onnx.macs import Sized, UncountedError, macs_of
from graphprune.passes.onnx.model import (
    FEW,
    SMALL,
    SOURCE,
    WEIGHT_TYPES,
    attributes,
    captured_values,
    evaluate,
    is_quantized_bias,
    is_standard,
    load_model,
)
from graphprune.passes.onnx.pages import Forget, put_aside
from graphprune.passes.onnx.shared import is_copy, split_shared
from graphprune.passes.onnx.sizes import layout_operators, operator_name
from graphprune.passes.onnx.weights import is_read_as_weight

logger = logging.getLogger("graphprune")

_NUMERIC_VALUES = frozenset({"value_int", "value_ints", "value_float", "value_floats"})

#: What a rule raises when inputs and attributes do not go together.
_MISFITS = (ValueError, TypeError, LookupError, AssertionError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class OnnxFrontEnd:
    """What cutting an ONNX graph needs from its analysis.

    Attributes:
        model: the analyzed model.
        ops: node -> rule, binding and operator.
        env: value -> what the analysis knows of it.
        kinds: value -> its type of numbers, also where the file does not say it.
        numbers: value -> its numbers where they are known and may matter: sizes, axes, indices, scales, zero points.
        names: carrier name -> the initializer or constant it stands for.
        nodes: the node of each step of the graph's flow.
    """

    model: ir.Model
    ops: Mapping[ir.Node, tuple[Rule, Binding, Op]]
    env: Mapping[ir.Value, Value]
    kinds: Mapping[ir.Value, ir.DataType]
    numbers: Mapping[ir.Value, NDArray[Any]]
    names: Mapping[str, ir.Value]
    nodes: Sequence[ir.Node]


def trace_onnx(
    source: str | os.PathLike[str] | ir.Model,
    *,
    dead: bool = False,
    whole_heads: bool = False,
    sizes: Mapping[str, int] | None = None,
    whole_vectors: bool = False,
) -> ChannelGraph:
    """The coupled channel groups of an ONNX model.

    Vectors that several nodes share become one for each in the model; `merge_copies` puts equal ones together again.

    Args:
        source: a path or a loaded model.
        dead: ask which channels are dead in the given weights instead of which can be removed once they
            are zero; `ChannelGraph.exact` then holds the answer.
        whole_heads: attention loses heads, instead of the same channel of every head.
        sizes: what symbolic dimensions of the inputs stand for; by default the batch is 2, others 64.
        whole_vectors: shared vectors stay shared, and the layers that read one lose the same channels. What is cut so
            never stores more numbers than before.

    Raises:
        ModelLoadError: the file is missing or is no ONNX model.
        UnsupportedModelError: it is written for the blocks of one kind of processor, of which nothing can be cut.
    """
    model = source if isinstance(source, ir.Model) else load_model(source)
    if blocked := layout_operators(model):
        raise UnsupportedModelError(
            f"{model.meta.get(SOURCE, 'the model')} has operators of an optimized file ({', '.join(blocked)}), whose "
            "weights lie in blocks of one kind of processor: slim the original"
        )
    name_apart(model)
    if not whole_vectors:
        split_shared(model)
    walk = _Walk(model, dead, whole_heads, dict(sizes or {}))
    walk.analysis.options = {"whole_heads": whole_heads, "whole_vectors": whole_vectors}
    return walk.graph()


class _Walk(Facts):
    def __init__(self, model: ir.Model, dead: bool, whole_heads: bool, sizes: dict[str, int]) -> None:
        super().__init__(model, sizes)
        self.dead = dead
        self.analysis = Analysis(whole_heads)
        self.feeds: list[tuple[tuple[int, ...], bool]] = []  # sizes of each input, and whether the batch is open
        self.ops: dict[ir.Node, tuple[Rule, Binding, Op]] = {}
        self.names: dict[str, ir.Value] = {}
        self.unknown: Counter[str] = Counter()
        self.uncounted: list[str] = []
        self.steps: list[Step] = []
        self.nodes: list[ir.Node] = []

    def graph(self) -> ChannelGraph:
        graph = self.model.graph
        constants = set(graph.initializers.values())
        for value in graph.inputs:
            if value in constants:
                continue
            shape = self.input_shape(value)
            if shape is None:
                self.unshaped.add(value)
                continue
            self.feeds.append((shape, not all(isinstance(dim, int) for dim in list(value.shape or ())[:1])))
            self.env[value] = Value(shape)
        for value in graph.initializers.values():
            self._constant(value, value.const_value)
            if is_overridable(self.model, value):
                self._pin(value)
        self._visit_all(graph)
        for value in graph.outputs:
            for facet in self.env[value].facets if value in self.env else ():
                self.analysis.freeze(facet, "the output of the model", "is an output")
        forget = Forget()  # whoever replaces a weight must not find the old one kept here
        self.steps = [replace(step, op=forget.numbers_of(step.op)) for step in self.steps]
        self.ops = {node: (rule, binding, forget.numbers_of(op)) for node, (rule, binding, op) in self.ops.items()}
        self.env = {value: forget.numbers(known) for value, known in self.env.items()}
        return ChannelGraph(
            self.analysis,
            {v.name: known for v, known in self.env.items() if v.name and v not in constants},
            parameters=frozenset(name for name, value in self.names.items() if _counts(value)),
            batch=samples_in(self.feeds),
            inputs=tuple(
                {"name": v.name, "shape": list(self.env[v].shape), "dtype": str(v.dtype)}
                for v in graph.inputs
                if v in self.env and v not in constants
            ),
            unknown=self.unknown,
            uncounted=self.uncounted,
            steps=self.steps,
            outputs=[self.env[value] for value in graph.outputs if value in self.env],
            front_end=OnnxFrontEnd(self.model, self.ops, self.env, self.kinds, self.numbers, self.names, self.nodes),
        )

    # -- leaves ------------------------------------------------------------------------------------

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        """A literal. Numbers that weights are made of carry labels; 64-bit integers are sizes and indices."""
        if tensor is None or value.name is None:
            return
        shape = tuple(tensor.shape.numpy())
        self.kinds[value] = tensor.dtype
        few = tensor.size <= FEW and tensor.dtype != ir.DataType.STRING
        if tensor.dtype in WEIGHT_TYPES or (tensor.dtype == ir.DataType.INT32 and is_quantized_bias(value)):
            data = tensor.numpy() if self.dead or few else None
            if few and data is not None:
                self.numbers[value] = data
            self.env[value] = self.analysis.parameter(value.name, shape, data if self.dead else None)
            if data is not None and data.size <= 1 and not self.dead:  # scalars: exponents, limits of a clip
                self.env[value] = Value(shape, constant=True, data=data)
            self.names[value.name] = value
            if data is not None:
                put_aside(data)
        else:
            data = tensor.numpy() if tensor.size <= SMALL and tensor.dtype != ir.DataType.STRING else None
            if data is not None:
                self.numbers[value] = data
            self.env[value] = Value(shape, constant=True, data=data)

    def _pin(self, value: ir.Value) -> None:
        """A literal that the caller may override: nothing of it can go, and its numbers say nothing."""
        known = self.env.get(value)
        if known is None:
            return
        for facet in known.facets:
            self.analysis.freeze(facet, "an input of the graph", "may be replaced at run time")
        self.numbers.pop(value, None)
        facets = tuple(facet.with_zero(False) for facet in known.facets)
        self.env[value] = replace(known, facets=facets, constant=False, data=None)

    # -- nodes ---------------------------------------------------------------------------------------

    def enter(self, graph: ir.Graph) -> None:
        """Walk a body: its literals, then its nodes."""
        for value in graph.initializers.values():
            self._constant(value, value.const_value)
        self._visit_all(graph)

    def _visit_all(self, graph: ir.Graph) -> None:
        for node in graph:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and is_standard(node.domain):
            self._constant_node(node)
            return
        if is_known_body(node, self.opsets) and self._through_bodies(node):
            return
        op_name = operator_name(node)
        found = TABLE.onnx_rule(op_name)
        data = self.evaluated(node)
        shapes = self.shapes(node, data)
        if shapes is None or any(value in self.unshaped for value in node.inputs if value is not None):
            self._give_up(node, op_name if found is None else f"{op_name} of unknown sizes")
            return
        if found is not None and self._computed(node, found[1]):
            found = None
        op, found, results = self._applied(node, op_name, found, shapes)
        if data is not None:
            for value, numbers in zip(node.outputs, data, strict=False):
                self.numbers[value] = numbers
                self.kinds[value] = ir.DataType.from_numpy(numbers.dtype)
            known = _with_zeros if self.dead else _with_numbers
            results = [known(r, n) for r, n in zip(results, data, strict=False)]
        elif self.dead:
            results = self._with_zeros(node, results)
        self._note_step(node, op, found[0] if found else None, results)
        self.env.update(zip(node.outputs, results, strict=False))
        for weight in op.values():
            if weight.data is not None:
                put_aside(weight.data)

    def _through_bodies(self, node: ir.Node) -> bool:
        """Walk the bodies of a node; whether that could be done.

        How often they run is not known, so what they do counts for nothing, which is noted, as in a count of the file.
        """
        counted, noted = len(self.analysis.terms), len(self.uncounted)
        done = walk_bodies(self, node)
        del self.analysis.terms[counted:], self.uncounted[noted:]
        if done:
            self._macs(node, [self.env[value].shape for value in node.outputs if value in self.env])
        return done

    def _applied(
        self, node: ir.Node, op_name: str, found: tuple[Rule, Binding] | None, shapes: tuple[tuple[int, ...], ...]
    ) -> tuple[Op, tuple[Rule, Binding] | None, list[Value]]:
        """The operator, the rule that was applied to it, and its results.

        Rules rely on what ONNX asks of an operator and its inputs; where a file does not keep to it, none is applied.
        """
        counted = len(self.analysis.terms)
        if found is not None:
            try:
                op = self.bound(node, op_name, found, shapes)
                covered = found[1].covers is None or found[1].covers(op)
                free = 0.0 if SELECTS in node.metadata_props else None  # data movement in another form
                results = self.analysis.run(found[0], self._with_captured(node, op), macs=free) if covered else []
            except _MISFITS as error:
                logger.debug("the rule for %s (%s) was not applied: %r", op_name, node.name, error)
                op_name = f"{op_name} that does not fit its inputs"
            else:
                if covered:
                    self.ops[node] = (*found, op)
                    return self._with_captured(node, op), found, results
                op_name = f"{op_name} of this form"
        self.unknown[op_name] += 1
        del self.analysis.terms[counted:]
        op = self._with_captured(node, self.bound(node, op_name, None, shapes))
        return op, None, self.analysis.run(None, op, macs=self._macs(node, shapes))

    def _macs(self, node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> float:
        """What a node without a rule costs; 0 where that cannot be said, which is noted."""
        sizes = {v.name: self.env[v].shape for v in node.inputs if v is not None and v.name and v in self.env}
        sizes |= {v.name: shape for v, shape in zip(node.outputs, shapes, strict=False) if v.name}
        read, given = ([(v.name if v is not None else "") or "" for v in some] for some in (node.inputs, node.outputs))
        try:
            return float(macs_of(Sized(node.op_type, node.domain, attributes(node), read, given, sizes)))
        except UncountedError as error:
            self.uncounted.append(f"{operator_name(node)} '{node.name or given[0]}': {error}")
        return 0.0

    def _with_zeros(self, node: ir.Node, results: list[Value]) -> list[Value]:
        """Results of an operator on literals, with the zeros of their own numbers.

        A weight times its mask may be zero where neither is.
        """
        given = [None if value is None else self.env.get(value) for value in node.inputs]
        if not any(value is not None and value.facets for value in given) or all(r.data is not None for r in results):
            return results
        if not all(result.constant for result in results) or any(
            value is not None and not self._is_known(item) for item, value in zip(node.inputs, given, strict=True)
        ):
            return results
        found = evaluate(node, [None if value is None else value.data for value in given], self.opsets)
        return results if found is None else [_with_zeros(r, n) for r, n in zip(results, found, strict=False)]

    def _is_known(self, item: ir.Value | None) -> bool:
        """Are the numbers of a value known as they are? Of a weight in integers it is only known where it is zero."""
        known = None if item is None else self.env.get(item)
        if item is None or known is None or known.data is None:
            return False
        return ir.DataType.from_numpy(known.data.dtype) == self.kinds.get(item)

    def _note_step(self, node: ir.Node, op: Op, rule: Rule | None, results: Sequence[Value]) -> None:
        if rule is not None and not is_standard(node.domain):  # folding a branch evaluates operators, and onnx cannot
            rule = replace(rule, pointwise=False)
        self.steps.append(Step(op, rule, tuple(results)))
        self.nodes.append(node)

    def _computed(self, node: ir.Node, binding: Binding) -> bool:
        """Does the node compute, from its input, a number that the rule has to know?"""
        for name, value in zip(binding.inputs, node.inputs, strict=False):
            known = self.env.get(value) if value is not None else None
            if name in binding.needs and known is not None and known.data is None:
                return True
        return False

    def _constant_node(self, node: ir.Node) -> None:
        (output,) = node.outputs
        for name, attribute in node.attributes.items():
            if name == "value":
                self._constant(output, attribute.as_tensor())
            else:
                kind = ir.DataType.FLOAT if "float" in name else ir.DataType.INT64
                data = np.asarray(attribute.value, kind.numpy()) if name in _NUMERIC_VALUES else None
                self.env[output] = Value(np.shape(attribute.value), constant=True, data=data)
                if data is not None:
                    self.numbers[output], self.kinds[output] = data, kind

    def _give_up(self, node: ir.Node, op_name: str) -> None:
        """Results of unknown size: nothing that reaches this node can be cut."""
        self.unknown[op_name] += 1
        self._macs(node, ())  # notes what cannot be counted
        where = f"{op_name} ({node.name})"
        for value in (*node.inputs, *captured_values(node)):
            known = self.env.get(value) if value is not None else None
            for facet in known.facets if known is not None else ():
                if known is not None and known.constant:
                    self.analysis.space.freeze(facet.labels, None)
                else:
                    self.analysis.freeze(facet, where, "its sizes cannot be told")
        self.unshaped.update(node.outputs)
        read = (*node.inputs, *captured_values(node))
        inputs = [self.env[value] for value in read if value is not None and value in self.env]
        self._note_step(node, Op(op_name, node.name or "", where, {"input": inputs}, {}, ()), None, ())

    def _with_captured(self, node: ir.Node, op: Op) -> Op:
        """The operator with the values that bodies of If, Loop and Scan read from outside among its inputs."""
        captured = [self.env[value] for value in captured_values(node) if value in self.env]
        for value in captured:
            self.analysis.freeze_value(value, op, "is read inside a sub-graph")
        return replace(op, inputs={**op.inputs, "captured": captured}) if captured else op


def _counts(value: ir.Value) -> bool:
    """Does a literal count as a parameter? A copy made for the analysis does not."""
    return is_read_as_weight(value) and not is_copy(value)


def _with_zeros(value: Value, numbers: NDArray[Any]) -> Value:
    """A computed constant as it is in the given weights."""
    if value.zero_point is not None:  # what is zero in it are elements at the zero point
        return replace(value, constant=True, data=numbers)
    zeros = zero_slices(numbers)
    facets = tuple(
        facet.with_zero(zeros[facet.dims[0]].reshape(facet.zero.shape)) if len(facet.dims) == 1 else facet
        for facet in value.facets
    )
    return replace(value, facets=facets, constant=True, data=numbers)


def _with_numbers(value: Value, numbers: NDArray[Any]) -> Value:
    """A computed constant. Numbers of weights stay unsaid: what they are is not what they will be when cut."""
    known = numbers if numbers.dtype.kind in "iub" or numbers.size <= 1 else None
    return Value(value.shape, value.facets, constant=True, data=known, zero_point=value.zero_point)

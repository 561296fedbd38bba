"""Bodies of If, Loop and Scan, walked where they stand: labels run into them and out of them.

A body reads values of the graph around it as its own nodes do, so only three things are to be stated: what the
branches of an If give meets; the state of a loop is the same channels before, during and after it; what a loop reads
or gives slice by slice has one dimension less inside.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Analysis, Op, Rule
from graphprune.passes.channels.branches import Step
from graphprune.passes.channels.coupling import all_zero, broadcast
from graphprune.passes.channels.value import Facet, Value
from graphprune.passes.onnx.sizes import operator_name

__all__ = ["BODIES", "is_known_body", "name_apart", "walk_bodies"]

#: Operators of the standard domain whose bodies are walked.
BODIES = ("If", "Loop", "Scan")


class Walk(Protocol):
    """What is asked of the walk over a graph."""

    analysis: Analysis
    env: dict[ir.Value, Value]
    kinds: dict[ir.Value, ir.DataType]
    numbers: dict[ir.Value, NDArray[Any]]
    unshaped: set[ir.Value]
    unknown: Counter[str]
    steps: list[Step]
    nodes: list[ir.Node]
    opsets: dict[str, int]

    def enter(self, graph: ir.Graph) -> None:
        """Walk the literals and nodes of a body."""


def _meet(analysis: Analysis, op: Op) -> list[Value]:
    return [broadcast(analysis, op, op.inputs["either"], all_zero)]


#: One of several values, and which is not known; `condition` is what decides.
_EITHER = Rule("one of several values", _meet, moves=True)


def is_known_body(node: ir.Node, opsets: dict[str, int]) -> bool:
    """Is a node one whose bodies can be walked? The Scan of opset 8 runs over a batch as well."""
    return operator_name(node) in BODIES and not (node.op_type == "Scan" and opsets.get("", 1) < 9)


def walk_bodies(walk: Walk, node: ir.Node) -> bool:
    """Walk the bodies of a node, and note what is known of its results.

    Returns False where their sizes cannot be told: then nothing in the bodies may be cut, nor what they read.
    """
    done = _branches(walk, node) if node.op_type == "If" else _Iteration(walk, node).run()
    if not done:
        _freeze_bodies(walk, node)
    return done


def name_apart(model: ir.Model) -> None:
    """Give values of bodies other names where several have one, as those of two branches may."""
    taken: set[str] = set()

    def name(value: ir.Value) -> None:
        free, count = value.name, 1
        while free in taken:
            count += 1
            free = f"{value.name}_{count}"
        if free != value.name and value.const_value is not None:  # its own tensor may be that of another model
            tensor = value.const_value
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=free, doc_string=tensor.doc_string)
        value.name = free
        if free:
            taken.add(free)

    seen: set[ir.Value] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if value not in seen:
                seen.add(value)
                name(value)


# -- If ---------------------------------------------------------------------------------------------------


def _branches(walk: Walk, node: ir.Node) -> bool:
    bodies = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for body in bodies:
        walk.enter(body)
    given = [[body.outputs[position] for body in bodies] for position in range(len(node.outputs))]
    if any(not _alike(walk, values) for values in given):
        return False
    condition = [walk.env[value] for value in node.inputs if value is not None and value in walk.env]
    results = [_either(walk, node, condition, [walk.env[value] for value in values]) for values in given]
    read = [walk.env[value] for values in given for value in values]
    _finish(walk, node, [*condition, *read], results)
    for output, (first, *_) in zip(node.outputs, given, strict=True):
        walk.kinds[output] = walk.kinds.get(first, first.dtype or output.dtype or ir.DataType.FLOAT)
    return True


def _alike(walk: Walk, values: Sequence[ir.Value]) -> bool:
    shapes = {walk.env[value].shape if value in walk.env else None for value in values}
    return len(shapes) == 1 and None not in shapes and not walk.unshaped.intersection(values)


def _op(node: ir.Node, inputs: dict[str, Any], *shapes: tuple[int, ...]) -> Op:
    return Op(node.op_type, node.name or "", node.name or node.op_type, inputs, {}, shapes)


def _either(walk: Walk, node: ir.Node, condition: list[Value], values: list[Value]) -> Value:
    """What holds of a value that is one of several."""
    values = [replace(value, data=None, parameter=None) for value in values]
    op = _op(node, {"condition": condition, "either": values}, values[0].shape)
    (result,) = walk.analysis.run(_EITHER, op)
    return replace(result, constant=False)


def _finish(walk: Walk, node: ir.Node, read: list[Value], results: Sequence[Value]) -> None:
    """Note a step that nothing can be said of but its inputs and results: no set of channels goes as a whole there."""
    op = _op(node, {"input": read}, *(value.shape for value in results))
    walk.steps.append(Step(op, None, tuple(results)))
    walk.nodes.append(node)
    walk.env.update(zip(node.outputs, results, strict=False))


def _freeze_bodies(walk: Walk, node: ir.Node) -> None:
    for attribute in node.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        for graph in (attribute.as_graph(), *attribute.as_graph().subgraphs()):
            inside = [*graph.inputs, *graph.initializers.values(), *(v for step in graph for v in step.outputs)]
            for value in inside:
                known = walk.env.get(value)
                if known is not None:
                    walk.analysis.freeze_value(known, _op(node, {}), "is inside a sub-graph of unknown sizes")


# -- Loop and Scan ------------------------------------------------------------------------------------------


class _Iteration:
    """One Loop or Scan.

    Attributes:
        states: values that go round: in front of the loop, at the start and at the end of its body, behind it.
        slices: what the body reads slice by slice: the whole, inside, and the dimension.
        stacked: what it gives slice by slice: inside, the whole, and the dimension.
    """

    def __init__(self, walk: Walk, node: ir.Node) -> None:
        self.walk, self.node = walk, node
        self.body = node.attributes["body"].as_graph()
        self.slices: list[tuple[ir.Value | None, ir.Value, int]] = []
        if node.op_type == "Loop":
            lead, count = 2, len(self.body.inputs) - 2
            before, inside, outputs = list(node.inputs)[2:], list(self.body.inputs)[2:], list(self.body.outputs)[1:]
            axes = [0] * (len(node.outputs) - count)
        else:
            scanned = node.attributes["num_scan_inputs"].as_int()
            lead, count = 0, len(node.inputs) - scanned
            before, inside, outputs = list(node.inputs), list(self.body.inputs), list(self.body.outputs)
            over = _ints(node, "scan_input_axes", scanned)
            self.slices = list(zip(before[count:], inside[count:], over, strict=True))
            axes = _ints(node, "scan_output_axes", len(node.outputs) - count)
        self.control = list(self.body.inputs)[:lead]
        self.states = list(zip(before[:count], inside[:count], outputs[:count], node.outputs[:count], strict=True))
        self.stacked = list(zip(outputs[count:], node.outputs[count:], axes, strict=True))

    def run(self) -> bool:
        """Walk until what is assumed of the state holds at the end of the body; whether its sizes can be told."""
        walk = self.walk
        read = [value for value in self.node.inputs if value is not None]
        if any(value not in walk.env or value in walk.unshaped for value in read):
            return False
        known = [walk.env[value] for value in read]
        for value in self.control:
            walk.env[value] = Value(tuple(value.shape.numpy()) if value.shape is not None else ())
        steps, unknown = len(walk.steps), walk.unknown.copy()
        start = [self._started(before) for before, *_ in self.states]
        while True:
            self._enter(known, start)
            if any(not self._is_round(inside, end) for _, inside, end, _ in self.states):
                return False
            behind = [self._round(inside, end) for _, inside, end, _ in self.states]
            left = [_still_zero(*pair) for pair in zip(start, behind, strict=True)]
            if all(a is b for a, b in zip(start, left, strict=True)):
                break
            start = left  # less is zero than was assumed: once more
            del walk.steps[steps:], walk.nodes[steps:]
            walk.unknown.clear()
            walk.unknown.update(unknown)
        whole = [self._stack(*item) for item in self.stacked]
        if any(value is None for value in whole):
            return False
        ends = [walk.env[value] for value in (*(end for _, _, end, _ in self.states), *(s[0] for s in self.stacked))]
        _finish(walk, self.node, [*known, *ends], [*behind, *(value for value in whole if value is not None)])
        for inner, outer in [*((end, out) for _, _, end, out in self.states), *(s[:2] for s in self.stacked)]:
            walk.kinds[outer] = walk.kinds.get(inner, inner.dtype or outer.dtype or ir.DataType.FLOAT)
        return True

    def _started(self, before: ir.Value | None) -> Value:
        """The state at the start: what holds of it in front of the loop, but it is no constant."""
        outer = self.walk.env[before] if before is not None else Value(())
        return replace(outer, constant=False, data=None, parameter=None)

    def _enter(self, known: list[Value], start: Sequence[Value]) -> None:
        """Start the state, hand out the first slices, and walk the body."""
        walk, started = self.walk, list(start)
        for (before, inside, *_), value in zip(self.states, start, strict=True):
            walk.env[inside] = value
            walk.kinds[inside] = walk.kinds.get(before or inside, inside.dtype or ir.DataType.FLOAT)
        for source, inside, axis in self.slices:
            assert source is not None
            walk.env[inside] = self._slice(walk.env[source], axis)
            walk.kinds[inside] = walk.kinds.get(source, inside.dtype or ir.DataType.FLOAT)
            started.append(walk.env[inside])
        op = _op(self.node, {"input": known}, *(value.shape for value in started))
        walk.steps.append(Step(op, None, tuple(started)))
        walk.nodes.append(self.node)
        walk.enter(self.body)

    def _slice(self, whole: Value, axis: int) -> Value:
        dim, free = axis % whole.rank, []
        for facet in whole.facets:
            if dim in facet.dims:
                self.walk.analysis.freeze_value(whole.with_facets((facet,)), _op(self.node, {}), "is taken apart")
            else:
                free.append(facet.map(lambda array: array.take(0, axis=dim)))
        return Value(whole.shape[:dim] + whole.shape[dim + 1 :], tuple(free), zero_point=whole.zero_point)

    def _is_round(self, inside: ir.Value, end: ir.Value) -> bool:
        """Has the state at the end of the body the sizes that it had at its start?"""
        walk = self.walk
        return end in walk.env and end not in walk.unshaped and walk.env[end].shape == walk.env[inside].shape

    def _round(self, inside: ir.Value, end: ir.Value) -> Value:
        return _either(self.walk, self.node, [], [self.walk.env[inside], self.walk.env[end]])

    def _stack(self, inside: ir.Value, outer: ir.Value, axis: int) -> Value | None:
        """What the body gives each time, as one tensor; None where its sizes cannot be told."""
        walk = self.walk
        rounds = self._rounds(outer, axis)
        if rounds is None or inside not in walk.env or inside in walk.unshaped:
            return None
        slice_ = walk.env[inside]
        dim = axis % (slice_.rank + 1)

        def lifted(facet: Facet) -> Facet:
            return facet.map(lambda array: np.expand_dims(array, dim))

        shape = (*slice_.shape[:dim], rounds, *slice_.shape[dim:])
        return Value(shape, tuple(map(lifted, slice_.facets)), zero_point=slice_.zero_point)

    def _rounds(self, outer: ir.Value, axis: int) -> int | None:
        """How many times the body runs, or at most; None where nothing tells it."""
        if self.slices:
            source, _, over = self.slices[0]
            return None if source is None else self.walk.env[source].shape[over]
        most = self.node.inputs[0]
        if most is not None and most in self.walk.numbers:
            return int(self.walk.numbers[most].reshape(-1)[0])
        size = None if outer.shape is None else outer.shape[axis]
        return size if isinstance(size, int) else None


def _still_zero(assumed: Value, found: Value) -> Value:
    """What may be assumed to be zero, given what is found at the end; the same object where that is no less."""
    facets = []
    for facet in assumed.facets:
        zero = np.zeros_like(facet.zero)
        for other in found.facets:
            if set(other.dims) & set(facet.dims):
                both = np.broadcast_to(other.zero, np.broadcast_shapes(other.zero.shape, facet.zero.shape))
                rest = tuple(dim for dim in range(both.ndim) if dim not in facet.dims)
                zero = facet.zero & both.all(axis=rest, keepdims=True)
        facets.append(facet if np.array_equal(zero, facet.zero) else facet.with_zero(zero))
    same = all(a is b for a, b in zip(assumed.facets, facets, strict=True))
    return assumed if same else replace(assumed, facets=tuple(facets))


def _ints(node: ir.Node, name: str, count: int) -> list[int]:
    found = node.attributes.get(name)
    return [0] * count if found is None else list(found.as_ints())

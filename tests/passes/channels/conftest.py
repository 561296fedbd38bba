"""A way to write networks operator by operator, in the words of the rules and without torch or onnx."""

from typing import Any

import numpy as np
import pytest

from graphprune.passes.channels.analysis import Analysis, Cut, Op
from graphprune.passes.channels.branches import Step
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.rules import ATEN, ONNX
from graphprune.passes.channels.value import Value
from graphprune.testing import written_out


class Sketch:
    """A network under analysis. `call` takes the rule's own argument names."""

    def __init__(self) -> None:
        self.analysis = Analysis()
        self.values: dict[str, Value] = {}
        self.calls: list[tuple[Any, Any, Op, list[Value], dict[str, Any]]] = []
        self.parameters: set[str] = set()

    def input(self, *shape: int) -> Value:
        return Value(shape)

    def parameter(self, name: str, *shape: int, data: Any = None) -> Value:
        self.parameters.add(name)
        return self.analysis.parameter(name, shape, data)

    def call(self, kind: str, /, *shapes: tuple[int, ...], table: Any = ATEN, **arguments: Any) -> Any:
        """Apply the rule of an operator; the result's shape (or shapes) must be given."""
        rule, binding = table.get(kind, (None, None))
        held = Value, list
        inputs = {k: v for k, v in arguments.items() if isinstance(v, held) and not _numbers(v)}
        attrs = {k: v for k, v in arguments.items() if k not in inputs}
        if binding is not None:
            attrs = {**binding.fixed, **attrs}
            attrs = binding.read(attrs, inputs) if binding.read else attrs
        name = f"{kind}_{len(self.calls)}"
        op = Op(kind, name, f"line {len(self.calls)}", inputs, attrs, shapes)
        results = self.analysis.run(rule, op)
        self.calls.append((rule, binding, op, results, arguments))
        self.values.update({f"{name}.{i}" if i else name: value for i, value in enumerate(results)})
        return results if len(shapes) > 1 else results[0]

    def onnx(self, kind: str, /, *shapes: tuple[int, ...], **arguments: Any) -> Any:
        return self.call(kind, *shapes, table=ONNX, **arguments)

    def conv(self, x: Value, name: str, out: int, kernel: int = 1, groups: int = 1, bias: bool = True) -> Value:
        """A convolution that keeps the positions."""
        inputs = x.shape[1]
        weight = self.parameter(f"{name}.weight", out, inputs // groups, *(kernel,) * (len(x.shape) - 2))
        b = self.parameter(f"{name}.bias", out) if bias else None
        shape = (x.shape[0], out, *x.shape[2:])
        return self.call("conv2d", shape, input=x, weight=weight, bias=b, groups=groups)

    def linear(self, x: Value, name: str, out: int) -> Value:
        weight, bias = self.parameter(f"{name}.weight", out, x.shape[-1]), self.parameter(f"{name}.bias", out)
        return self.call("linear", (*x.shape[:-1], out), input=x, weight=weight, bias=bias)

    def relu(self, x: Value) -> Value:
        return self.call("relu", x.shape, input=x)

    def graph(self, *outputs: Value) -> ChannelGraph:
        """Freeze the outputs and settle."""
        for value in outputs:
            for facet in value.facets:
                self.analysis.freeze(facet, "the output of the model", "is an output")
        return ChannelGraph(
            self.analysis,
            self.values,
            parameters=frozenset(self.parameters),
            batch=1,
            inputs=({"shape": [1, 3, 4, 4], "dtype": "float32"},),
            steps=[Step(op, rule, tuple(results)) for rule, _, op, results, _ in self.calls],
            outputs=outputs,
        )

    def resized(self, graph: ChannelGraph, number: int, removed: list[int]) -> dict[str, Any]:
        """The arguments that operator `number` gets anew when the groups `removed` go, in its vocabulary's words."""
        flags = np.isin(np.arange(graph.n_groups), removed)
        rule, binding, op, results, arguments = self.calls[number]
        inputs = {key: graph.cuts(v, flags) for key, v in op.inputs.items() if isinstance(v, Value)}
        changes = rule.resize(op, Cut(inputs, [graph.cuts(v, flags) for v in results]))
        return binding.write(changes, arguments) if changes and binding.write else changes


def _numbers(item: Any) -> bool:
    return isinstance(item, list) and not any(isinstance(v, Value) for v in item)


@pytest.fixture
def sketch() -> Sketch:
    return Sketch()


@pytest.fixture
def groups_of():
    """Every group written out: "name/dim[indices] ..." with parameters in order."""
    return written_out

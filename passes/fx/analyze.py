"""Channel analysis of a captured graph: walk the nodes, hand each operator to its rule."""

import operator
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.branches import Step
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.fake_quantize import names_zero_points
from graphprune.passes.fx.operators import find_rule, spelling

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
#: Integer tensors up to this size are read: they may be indices of channels.
_SMALL = 1 << 16


def trace(model: Any, example_inputs: tuple[Any, ...] | None = None, *, whole_heads: bool = False) -> ChannelGraph:
    """The coupled channel groups of a model.

    Args:
        model: an `nn.Module`, an exported program or a captured module.
        example_inputs: a tuple of inputs (not needed for captured ones).
        whole_heads: attention loses heads, instead of the same channel of every head.

    Raises:
        CaptureError: the model cannot be captured.
    """
    return analyze(capture(model, example_inputs, share=True), whole_heads=whole_heads)


def analyze(module: CapturedModule, *, whole_heads: bool = False, dead: bool = False) -> ChannelGraph:
    """The coupled channel groups of a captured model; see `trace`.

    Args:
        module: the captured model.
        whole_heads: see `trace`.
        dead: ask which channels are dead in the weights as they are (`ChannelGraph.exact`) instead of which can be
            removed once they are zero. The groups are the same.
    """
    return _Walk(module, whole_heads, dead).graph()


def source_line(node: fx.Node) -> str:
    """Where in the user's code a node comes from: module path and source line."""
    path, line = module_path(node), _own_line(node.meta.get("stack_trace") or "")
    return f"{path} ({line})" if path and line else path or line or node.name


@lru_cache(maxsize=4096)
def _own_line(stack_trace: str) -> str:
    """File and line of the innermost frame that is not torch's."""
    own = [f for f in _FRAME.findall(stack_trace) if "/torch/" not in f[0] and not f[0].startswith("torch/")]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that a node was called in; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return path if path and not path.startswith("_") else ""


def concrete(size: Any) -> int:
    """A size as a number: symbolic ones have the value they had in the example inputs.

    Raises:
        CaptureError: the size depends on data.
    """
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    if hint is None:
        raise CaptureError("the model has tensors whose size depends on the values of its input: this is not supported")
    return int(hint)


def shapes_of(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    """Sizes of each tensor that a node gives (one for a plain result)."""
    meta = node.meta.get("val")
    results = meta if isinstance(meta, tuple | list) else [meta]
    return tuple(tuple(concrete(s) for s in r.shape) if isinstance(r, torch.Tensor) else () for r in results)


@dataclass(frozen=True)
class FxFrontEnd:
    """What cutting a captured graph needs from its analysis.

    Attributes:
        module: the captured model.
        ops: node name -> rule, binding and operator.
        env: node -> value (a list for operators with several results; a number for sizes).
    """

    module: CapturedModule
    ops: Mapping[str, tuple[Rule, Binding, Op]]
    env: Mapping[fx.Node, Any]


class _Walk:
    def __init__(self, module: CapturedModule, whole_heads: bool, dead: bool) -> None:
        self.module = module
        self.dead = dead
        self.analysis = Analysis(whole_heads)
        self.env: dict[fx.Node, Any] = {}
        self.ops: dict[str, tuple[Rule, Binding, Op]] = {}
        self.unknown: Counter[str] = Counter()
        self.tensors = dict(module.named_parameters(remove_duplicate=False))
        self.buffers = dict(module.named_buffers(remove_duplicate=False))
        self.literals: frozenset[str] = module.meta.get("literals", frozenset())
        named = {**self.tensors, **self.buffers}
        #: Tied tensors go by the name that comes first, as in `named_parameters()`.
        self.canonical = {id(tensor): name for name, tensor in reversed(named.items())}
        self.storage: dict[fx.Node, fx.Node] = {}
        self.steps: list[Step] = []
        self.outputs: list[Value] = []
        self.same: dict[int, int] = {}

    def graph(self) -> ChannelGraph:
        inputs: list[dict[str, Any]] = []
        batch = 1
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                value = self.env[node] = self._placeholder(node)
                if isinstance(value, Value) and value.rank:
                    batch = value.shape[0] if not inputs else batch
                    inputs.append({"shape": list(value.shape), "dtype": str(node.meta["val"].dtype).rpartition(".")[2]})
            elif node.op == "get_attr":
                self.env[node] = self._attribute(node)
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                self._output(node)
        values = {node.name: v for node, v in self.env.items() if isinstance(v, Value)}
        return ChannelGraph(
            self.analysis,
            values,
            parameters=frozenset(dict(self.module.named_parameters())),
            batch=batch,
            inputs=tuple(inputs),
            unknown=self.unknown,
            steps=self.steps,
            outputs=self.outputs,
            same=self.same,
            front_end=FxFrontEnd(self.module, self.ops, self.env),
        )

    def _placeholder(self, node: fx.Node) -> Any:
        meta = node.meta.get("val")
        if isinstance(meta, torch.Tensor):
            return Value(tuple(concrete(s) for s in meta.shape))
        return concrete(meta) if isinstance(meta, torch.SymInt) else meta

    def _attribute(self, node: fx.Node) -> Any:
        name = str(node.target)
        tensor = self.tensors.get(name, self.buffers.get(name))
        if tensor is None:
            owner: Any = self.module
            for part in name.split("."):
                owner = getattr(owner, part)
            tensor = owner
        if not isinstance(tensor, torch.Tensor):
            return tensor
        shape = tuple(tensor.shape)
        is_mask = tensor.dtype == torch.bool  # as a rule one of channels or positions; no index
        is_named = tensor.is_floating_point() or is_mask or names_zero_points(node)
        if not is_named and tensor.numel() <= _SMALL:
            return Value(shape, constant=True, data=tensor.cpu().numpy())
        if name in self.literals:  # written in the model's code: no plan can reach it
            return Value(shape, constant=True, data=tensor.cpu().numpy() if tensor.numel() <= 1 else None)
        data = tensor.detach().cpu().numpy() if self.dead and tensor.is_floating_point() else None
        return self.analysis.parameter(self.canonical.get(id(tensor), name), shape, data)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            container = node.args[0]
            if isinstance(container, fx.Node) and container in self.storage:
                self.storage[node] = self.storage[container]
            held: Any = self._resolve(container)
            return held[node.args[1]]
        arguments = [self._resolve(a) for a in node.all_input_nodes]
        meta = node.meta.get("val")
        written = _written(node)
        if not _has_tensor(meta) and not written:
            return self._number(node, meta)
        found = None if written else find_rule(node.target)
        op = self._op(node, found, arguments)
        if found is not None and found[1].covers is not None and not found[1].covers(op):
            found = None
            op = replace(self._op(node, None, arguments), kind=f"{op.kind} of this form")
        if found is None:
            self.unknown[op.kind] += 1
        else:
            self.ops[node.name] = (*found, op)
        results = self.analysis.run(found[0] if found else None, op)
        changed = [value for source in written for value in self._forget(self.storage.get(source, source))]
        self.steps.append(Step(op, found[0] if found else None, (*results, *changed)))
        self._note_storage(node, results)
        return results if isinstance(meta, tuple | list) else results[0]

    def _note_storage(self, node: fx.Node, results: list[Value]) -> None:
        """Keep track of views; what is changed in place is known to be zero no longer under its older names."""
        alias = _alias(node.target)
        if alias is None or not node.args or not isinstance(node.args[0], fx.Node):
            return
        base = self.storage.get(node.args[0], node.args[0])
        self.storage[node] = base
        if not alias.is_write:
            return
        zero = all(facet.zero.all() for value in results for facet in value.facets)
        constant = all(value.constant for value in results)
        for other, held in self._names_of(base):
            for value in held if isinstance(held, list) else [held]:
                if isinstance(value, Value):
                    self.analysis.repeats.forget(value)
            if isinstance(held, list):
                self.env[other] = [self._restated(value, zero, constant) for value in held]
            elif isinstance(held, Value):
                self.env[other] = self._restated(held, zero, constant)

    def _names_of(self, base: fx.Node) -> list[tuple[fx.Node, Any]]:
        """A tensor and all views of it, with what is known of each."""
        nodes = (base, *(view for view, root in self.storage.items() if root is base))
        return [(node, self.env.get(node)) for node in nodes]

    def _forget(self, base: fx.Node) -> list[Value]:
        """What a tensor and all views of it are after something was written to them that no rule speaks of."""
        fresh: list[Value] = []
        for node, held in self._names_of(base):
            if isinstance(held, Value):
                self.analysis.repeats.forget(held)
                self.env[node] = Value(held.shape)
                fresh.append(self.env[node])
        return fresh

    def _restated(self, value: Value, zero: bool, constant: bool) -> Value:
        """The same value after a change in place: known to be zero or constant only if what was written is.

        Its numbers are known no longer. It stays the same to who follows the flow of values.
        """
        if value.data is None and zero and (constant or not value.constant):
            return value
        facets = value.facets if zero else tuple(facet.with_zero(False) for facet in value.facets)
        restated = replace(value.with_facets(facets), constant=value.constant and constant)
        self.same[id(restated)] = self.same.get(id(value), id(value))
        return restated

    def _number(self, node: fx.Node, meta: Any) -> Any:
        if isinstance(meta, torch.SymInt | int):
            return concrete(meta)
        if isinstance(meta, torch.SymFloat):
            return float(meta.node.hint)
        return meta

    def _resolve(self, item: Any) -> Any:
        return self.env[item] if isinstance(item, fx.Node) else item

    def _op(self, node: fx.Node, found: tuple[Rule, Binding] | None, arguments: list[Any]) -> Op:
        raw = bind_arguments(node)
        resolved = {name: fx.node.map_arg(value, self._resolve) for name, value in raw.items()}
        binding = found[1] if found else Binding()
        back = spelling(node.target, binding)
        inputs: dict[str, Any] = {}
        attrs: dict[str, Any] = {}
        for name, value in resolved.items():
            ours = back.get(name, "input" if name == "self" and found and found[0].name != "choice" else name)
            if isinstance(value, Value):
                _give(inputs, ours, [value])
            elif isinstance(value, list | tuple) and any(isinstance(v, Value) for v in value):
                _give(inputs, ours, list(value), several=True)
            elif isinstance(value, np.ndarray):
                attrs[ours] = value
            else:
                attrs[ours] = list(value) if isinstance(value, fx.immutable_collections.immutable_list) else value
        attrs = {**binding.fixed, **attrs}
        if binding.read is not None:
            attrs = binding.read(attrs, inputs)
        unread = _unread(node)
        return Op(str(node.target), node.name, source_line(node), inputs, attrs, shapes_of(node), unread)

    def _output(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            held = self.env[source]
            for value in held if isinstance(held, list) else [held]:
                if isinstance(value, Value):
                    self.outputs.append(value)
                    for facet in value.facets:
                        self.analysis.freeze(facet, "the output of the model", "is an output")


def _unread(node: fx.Node) -> frozenset[int]:
    """Which results of an operator with several nobody takes."""
    meta = node.meta.get("val")
    if not isinstance(meta, tuple | list) or any(user.target is not operator.getitem for user in node.users):
        return frozenset()
    return frozenset(range(len(meta))) - {user.args[1] for user in node.users}


def _give(inputs: dict[str, Any], name: str, values: list[Any], several: bool = False) -> None:
    """Enter values under a rule's name; one that ends in `...` takes those of several arguments."""
    if name.endswith("..."):
        inputs.setdefault(name.removesuffix("..."), []).extend(values)
    else:
        inputs[name] = values if several else values[0]


def _has_tensor(meta: Any) -> bool:
    if isinstance(meta, tuple | list):
        return any(isinstance(item, torch.Tensor) for item in meta)
    return isinstance(meta, torch.Tensor)


def bind_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by the names of the operator's schema; defaults filled in."""
    schema = _signature(node.target)
    if schema is None:
        named: Mapping[str, Any] = {f"arg{i}": a for i, a in enumerate(node.args)}
        return {**named, **node.kwargs}
    bound = {}
    for position, (name, has_default, default) in enumerate(schema):
        if position < len(node.args):
            bound[name] = node.args[position]
        elif name in node.kwargs:
            bound[name] = node.kwargs[name]
        elif has_default:
            bound[name] = default
    return bound


@cache
def _signature(target: Any) -> list[tuple[str, bool, Any]] | None:
    """Name of each argument of an operator, whether it has a default, and that."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    return [(a.name, a.has_default_value(), a.default_value) for a in schema.arguments]


def _written(node: fx.Node) -> list[fx.Node]:
    """What an operator changes besides its first argument, or instead of giving a result: no rule speaks of that."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    first = 1 if schema.returns else 0
    names = {a.name for a in schema.arguments[first:] if a.alias_info is not None and a.alias_info.is_write}
    given = [value for name, value in bind_arguments(node).items() if name in names]
    flat = [item for value in given for item in (value if isinstance(value, list | tuple) else [value])]
    return [item for item in flat if isinstance(item, fx.Node)]


@cache
def _alias(target: Any) -> Any:
    """What an operator's schema says of its first argument: None, or whether it is written to or just viewed."""
    schema = getattr(target, "_schema", None)
    return schema.arguments[0].alias_info if schema is not None and schema.arguments else None

"""Removing channels from ONNX graphs: those that a plan names, or those that are dead already."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.passes.channels.analysis import Cut
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import PlanError
from graphprune.passes.onnx.analyze import OnnxFrontEnd, trace_onnx


@dataclass(frozen=True)
class Removal:
    """What a removal pass did: groups removed, and how many channels of how many layers that is."""

    groups: int
    channels: int
    layers: int


class ChannelRemovalPass(ir.passes.InPlacePass):
    """Remove groups of coupled channels: those of a plan, or without one those that are dead.

    Cases:
        1. no plan: a group is dead when every operator that sums over its channels meets zeros, in its weight
           or in the value. One channel of a layer always stays.
        2. a plan: the groups that its indices name. Parameters that the exporter renamed or folded are found
           through the ones it did not.

    Afterwards initializers are sliced, constants and attributes that repeat sizes rewritten, shapes noted.
    Running it again changes nothing. `removal` tells what the last run did, `unknown`
    which operators it has no rule for.
    """

    def __init__(self, plan: PruningPlan | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.removal = Removal(0, 0, 0)
        self.unknown: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; see the class.

        Raises:
            PlanError: the plan fits none of the model's weights, or cuts coupled channels in part.
        """
        graph = trace_onnx(model, dead=self.plan is None)
        removed = dead_groups(graph) if self.plan is None else planned_groups(graph, self.plan)
        self.removal, self.unknown = _describe(graph, removed), graph.unknown
        if not removed.any():
            return ir.passes.PassResult(model, modified=False)
        remove_groups(graph, removed)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def dead_groups(graph: ChannelGraph) -> Mask:
    """Groups that add nothing, given a graph traced with `dead=True`; (G,) bool. One of each set stays."""
    removed = graph.exact.copy()
    for group_set in graph.sets:
        if removed[group_set.groups].all():
            removed[group_set.groups[0]] = False
    return removed


def planned_groups(graph: ChannelGraph, plan: PruningPlan) -> Mask:
    """Groups that a plan names by the weights which the model still has under the same name and shape.

    Raises:
        PlanError: there are none, or coupled channels are cut in part.
    """
    removed = np.zeros(graph.n_groups, dtype=np.bool_)
    known = [name for name in plan.removed if graph.shapes.get(name) == tuple(plan.shapes.get(name, ()))]
    if plan.removed and not known:
        raise PlanError("the plan names no weight of this file: was it made for another model?")
    for name in known:
        for dim, indices in plan.removed[name].items():
            axis = graph.axes.get((name, dim))
            if axis is None or (axis[list(indices)] < 0).any():
                raise PlanError(f"the plan removes channels of {name} along dimension {dim} that cannot be removed")
            removed[axis[list(indices)]] = True
    for name in known:
        for dim in range(len(graph.shapes[name])):
            ids = graph.axes.get((name, dim))
            if ids is None:
                continue
            planned = ~plan.kept(name, dim, len(ids))
            if not np.array_equal(planned, (ids >= 0) & removed[ids]):
                raise PlanError(f"the plan cuts coupled channels of {name} along dimension {dim} only in part")
    return removed


def _describe(graph: ChannelGraph, removed: Mask) -> Removal:
    channels = layers = 0
    for (name, dim), ids in graph.axes.items():
        if dim == _producing_dim(graph, name):
            gone = int(((ids >= 0) & removed[ids]).sum())
            channels += gone
            layers += gone > 0
    return Removal(int(removed.sum()), channels, layers)


def _producing_dim(graph: ChannelGraph, name: str) -> int | None:
    return 0 if len(graph.shapes[name]) > 2 else None


def mask_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Set the weights of the removed groups to zero and keep all shapes; changes the analyzed model."""
    for value, gone in _hit(graph, removed):
        array = _numbers(value).copy()
        for dim, mask in gone.items():
            np.moveaxis(array, dim, 0)[mask] = 0
        _replace_tensor(value, array)


def _hit(graph: ChannelGraph, removed: Mask) -> Iterator[tuple[ir.Value, dict[int, Mask]]]:
    """Constants that lose something, with the indices that go, by dimension."""
    front: OnnxFrontEnd = graph.front_end
    for name, value in front.names.items():
        gone: dict[int, Mask] = {}
        for dim in range(len(graph.shapes[name])):
            ids = graph.axes.get((name, dim))
            mask = None if ids is None else (ids >= 0) & removed[ids]
            if mask is not None and mask.any():
                gone[dim] = mask
        if gone:
            yield value, gone


def remove_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Cut the analyzed model in place: weights, arguments that repeat sizes, noted shapes."""
    front: OnnxFrontEnd = graph.front_end
    for node, (rule, binding, op) in front.ops.items():
        if rule.resize is None:
            continue
        inputs = {key: graph.cuts(value, removed) for key, value in op.inputs.items() if isinstance(value, Value)}
        outputs = [graph.cuts(front.env[value], removed) for value in node.outputs if value in front.env]
        changes = rule.resize(op, Cut(inputs, outputs))
        if changes and binding.write is not None:
            changes = binding.write(changes, op.inputs)
        for key, new in changes.items():
            _rewrite(front, node, binding.inputs, key, new)
    for value, gone in _hit(graph, removed):
        array = _numbers(value)
        for dim, mask in gone.items():
            array = np.compress(~mask, array, axis=dim)
        _replace_tensor(value, array)
    for value, known in front.env.items():
        cuts = graph.cuts(known, removed)
        if cuts and value.shape is not None and value.name not in front.names:
            value.shape = ir.Shape(
                [int(cuts[dim].sum()) if dim in cuts else size for dim, size in enumerate(value.shape)]
            )


def _numbers(value: ir.Value) -> np.ndarray:
    producer = value.producer()
    if producer is not None:
        return producer.attributes["value"].as_tensor().numpy()
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace_tensor(value: ir.Value, array: np.ndarray) -> None:
    tensor = ir.tensor(np.ascontiguousarray(array), name=value.name)
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    else:
        value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def _rewrite(front: OnnxFrontEnd, node: ir.Node, names: tuple[str, ...], key: str, new: Any) -> None:
    """Set an attribute, or replace an input by a new constant. None inside a list keeps the old entry."""
    if key in names and not _is_attribute(front.model, node, key):
        position = names.index(key)
        old = node.inputs[position] if position < len(node.inputs) else None
        _replace_input(front, node, position, old, new)
        node.attributes.pop("num_outputs", None)  # Split: either a number of parts or their sizes
        return
    node.attributes[key] = ir.AttrInt64s(key, new) if isinstance(new, list) else ir.AttrInt64(key, int(new))


def _is_attribute(model: ir.Model, node: ir.Node, key: str) -> bool:
    version = model.graph.opset_imports.get(node.domain, model.graph.opset_imports.get("", 1))
    return key in onnx.defs.get_schema(node.op_type, version, node.domain).attributes


def _replace_input(front: OnnxFrontEnd, node: ir.Node, position: int, old: ir.Value | None, new: Any) -> None:
    known = front.env.get(old) if old is not None else None
    if isinstance(new, list) and any(item is None for item in new):
        assert known is not None
        assert known.data is not None
        before = known.data.ravel().tolist()
        new = [was if item is None or was == -1 else item for was, item in zip(before, new, strict=True)]
        if new == before:
            return
        if old is not None and not _is_literal(old):
            new = _unbaked(front, node, new)
    graph = front.model.graph
    name = f"{node.outputs[0].name}_{position}_slim"
    data = np.asarray(new, dtype=np.int64 if known is None or known.data is None else known.data.dtype)
    value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(ir.DataType.from_numpy(data.dtype)))
    value.const_value = ir.tensor(data, name=name)
    graph.register_initializer(value)
    if position >= len(node.inputs):
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def _is_literal(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _unbaked(front: OnnxFrontEnd, node: ir.Node, sizes: list[int]) -> list[int]:
    """Sizes computed from the batch hold the batch of the analysis: 0 copies it from the input instead."""
    source = front.env.get(node.inputs[0]) if node.inputs[0] is not None else None
    if source is not None and source.rank and sizes and sizes[0] == source.shape[0]:
        return [0, *sizes[1:]]
    return sizes

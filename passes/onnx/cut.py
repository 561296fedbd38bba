"""Cutting an analyzed ONNX graph in place: weights, arguments that repeat sizes, noted shapes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.analysis import Cut
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.analyze import OnnxFrontEnd
from graphprune.passes.onnx.fold import fold_branches
from graphprune.passes.onnx.model import attributes, evaluate


def mask_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Set the weights of the removed groups to zero and keep all shapes; changes the analyzed model."""
    for value, gone in _hit(graph, removed):
        array = _numbers(value).copy()
        for dim, mask in gone.items():
            np.moveaxis(array, dim, 0)[mask] = 0
        _replace_tensor(value, array)


def remove_groups(graph: ChannelGraph, removed: Mask) -> None:
    """Remove the groups from the analyzed model."""
    _Cutter(graph, removed).run()


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


def _numbers(value: ir.Value) -> NDArray[Any]:
    producer = value.producer()
    if producer is not None:
        return producer.attributes["value"].as_tensor().numpy()
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace_tensor(value: ir.Value, array: NDArray[Any]) -> None:
    tensor = ir.tensor(np.ascontiguousarray(array), name=value.name)
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
    else:
        value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def _is_literal(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


class _Cutter:
    def __init__(self, graph: ChannelGraph, removed: Mask) -> None:
        self.graph = graph
        self.removed = removed
        self.front: OnnxFrontEnd = graph.front_end
        self.cuts = {value: graph.cuts(known, removed) for value, known in self.front.env.items()}
        self.opsets = dict(self.front.model.graph.opset_imports)

    def run(self) -> None:
        for node in self.front.ops:
            self._arguments(node)
        for value, gone in _hit(self.graph, self.removed):
            array = _numbers(value)
            for dim, mask in gone.items():
                array = np.compress(~mask, array, axis=dim)
            _replace_tensor(value, array)
        for value, cuts in self.cuts.items():
            if cuts and value.shape is not None and value.name not in self.front.names:
                sizes = [int(cuts[dim].sum()) if dim in cuts else size for dim, size in enumerate(value.shape)]
                value.shape = ir.Shape(sizes)
        fold_branches(self.graph, self.removed)

    def _arguments(self, node: ir.Node) -> None:
        """Let the rule of the node's operator say what follows the cut, and write it."""
        rule, binding, op = self.front.ops[node]
        if rule.resize is None:
            return
        inputs = {key: self.graph.cuts(v, self.removed) for key, v in op.inputs.items() if isinstance(v, Value)}
        outputs = [self.cuts[value] for value in node.outputs if value in self.cuts]
        changes = rule.resize(op, Cut(inputs, outputs))
        if changes and binding.write is not None:
            changes = binding.write(changes, op.inputs)
        for key, new in changes.items():
            if key in binding.inputs and not self._is_attribute(node, key):
                self._set_input(node, binding.inputs.index(key), new)
                node.attributes.pop("num_outputs", None)  # Split: either a number of parts or their sizes
            else:
                is_list = isinstance(new, list)
                node.attributes[key] = ir.AttrInt64s(key, new) if is_list else ir.AttrInt64(key, int(new))

    def _is_attribute(self, node: ir.Node, key: str) -> bool:
        version = self.opsets.get(node.domain) or self.opsets.get("", 1)
        return key in onnx.defs.get_schema(node.op_type, version, node.domain).attributes

    def _set_input(self, node: ir.Node, position: int, new: Any) -> None:
        """Replace an input by a new constant. None inside a list keeps the old entry.

        Sizes that the graph computes are left alone where they follow the cut by themselves.
        """
        old = node.inputs[position] if position < len(node.inputs) else None
        known = self.front.env.get(old) if old is not None else None
        if isinstance(new, list) and any(item is None for item in new):
            assert known is not None
            assert known.data is not None
            before = known.data.ravel().tolist()
            new = [was if item is None or was == -1 else item for was, item in zip(before, new, strict=True)]
            if new == before:
                return
        dtype = np.int64 if known is None or known.data is None else known.data.dtype
        data = np.asarray(new, dtype=dtype)
        if old is not None and not _is_literal(old):
            found = self._recomputed(old)
            if found is not None and np.array_equal(found, data):
                return
            data = self._unbaked(node, data)
        name = f"{node.outputs[0].name}_{position}_slim"
        value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(ir.DataType.from_numpy(data.dtype)))
        value.const_value = ir.tensor(data, name=name)
        self.front.model.graph.register_initializer(value)
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)

    def _recomputed(self, value: ir.Value) -> NDArray[Any] | None:
        """What a computed integer tensor holds once the tensors whose sizes it reads are cut; None if unknown."""
        known = self.front.env.get(value)
        if known is None or known.data is None:
            return None
        producer = value.producer()
        if _is_literal(value) or producer is None:
            return known.data
        if producer.op_type == "Shape" and producer.inputs[0] is not None:
            source = producer.inputs[0]
            cuts = self.cuts.get(source, {})
            sizes = [int(cuts[d].sum()) if d in cuts else n for d, n in enumerate(self.front.env[source].shape)]
            options = attributes(producer)
            return np.asarray(sizes, dtype=np.int64)[slice(options.get("start"), options.get("end"))]
        inputs = [None if item is None else self._recomputed(item) for item in producer.inputs]
        if any(item is not None and found is None for item, found in zip(producer.inputs, inputs, strict=True)):
            return None
        results = evaluate(producer, inputs, self.opsets)
        return None if results is None else results[list(producer.outputs).index(value)]

    def _unbaked(self, node: ir.Node, sizes: NDArray[Any]) -> NDArray[Any]:
        """Sizes computed from the batch hold the batch of the analysis: in Reshape, 0 copies it from the input."""
        source = self.front.env.get(node.inputs[0]) if node.inputs[0] is not None else None
        if node.op_type == "Reshape" and source is not None and source.rank and sizes[0] == source.shape[0]:
            sizes = sizes.copy()
            sizes[0] = 0
        return sizes

"""Vectors that several layers read, because an exporter stores equal numbers once: taken apart, and put together again.

Slopes, scales, shifts and biases that happen to be equal say nothing of the layers that read them. For the analysis
each layer has a copy of its own; what is equal after a cut is stored once again. A weight of two or more dimensions
that two layers share stays shared: its copies could make a file larger than the one that came.
"""

import onnx_ir as ir

from graphprune.passes.onnx.contract import add_literal, is_overridable, literal
from graphprune.passes.onnx.model import WEIGHT_TYPES, is_quantized_bias

__all__ = ["is_copy", "merge_copies", "split_shared"]

#: Where a copy notes what it is a copy of.
_ORIGINAL = "graphprune.copy_of"


def split_shared(model: ir.Model) -> None:
    """Give every reader of a shared vector a copy of it, but the first; in place."""
    inside = [node.outputs[0] for node in model.graph if node.op_type == "Constant" and node.domain == ""]
    for value in [*model.graph.initializers.values(), *inside]:
        uses = value.uses()
        if len(uses) < 2 or value.is_graph_output() or is_overridable(model, value):
            continue
        tensor = literal(model, value)
        if tensor is None or not _is_vector(value, tensor):
            continue
        for use in list(uses)[1:]:
            copied = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, doc_string=tensor.doc_string)
            copy = add_literal(model, f"{value.name}_copy", copied)
            copy.meta[_ORIGINAL] = value.meta.get(_ORIGINAL, value)
            use.node.replace_input_with(use.idx, copy)


def is_copy(value: ir.Value) -> bool:
    """Is a literal one that `split_shared` made?"""
    return _ORIGINAL in value.meta


def merge_copies(model: ir.Model) -> None:
    """Store copies that are equal once, under the name of what they are copies of; in place."""
    families: dict[ir.Value, list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        if _ORIGINAL in value.meta:
            families.setdefault(value.meta[_ORIGINAL], []).append(value)
    for original, copies in families.items():
        is_there = _is_there(model, original)
        kept = [original] if is_there else []
        for value in copies:
            twin = next((other for other in kept if _equal(model, value, other)), None)
            if twin is None:
                kept.append(value)
                continue
            value.replace_all_uses_with(twin)
            if value.is_graph_input():
                model.graph.inputs.remove(value)
            del model.graph.initializers[value.name or ""]
        if not is_there:
            kept[0].name = original.name
            del kept[0].meta[_ORIGINAL]


def _is_there(model: ir.Model, value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None:
        return producer.graph is model.graph
    return model.graph.initializers.get(value.name or "") is value


def _is_vector(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Is it a vector, whichever dimension it lies along, of numbers that weights are made of?"""
    is_weight = tensor.dtype in WEIGHT_TYPES or (tensor.dtype == ir.DataType.INT32 and is_quantized_bias(value))
    return is_weight and sum(size != 1 for size in tensor.shape.numpy()) == 1


def _equal(model: ir.Model, one: ir.Value, other: ir.Value) -> bool:
    a, b = literal(model, one), literal(model, other)
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tobytes() == b.tobytes()

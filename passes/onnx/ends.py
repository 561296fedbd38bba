"""What an ONNX graph says of its outputs; see `passes.channels.ends`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphprune.passes.channels.ends import COPIES, ENDS, End, Move, followed

__all__ = ["output_ends"]

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_STANDARD = frozenset({"", "ai.onnx"})


def output_ends(model: onnx.ModelProto) -> list[End | None]:
    """For every output, what ends the network there; None where that says nothing. Weights may be left out."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output[:1] if name}
    opset = next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 1)
    names = [output.name for output in graph.output]
    if not any(name in makers and _is_read(makers[name]) for name in names):
        return [None] * len(names)
    shapes = _shapes(model)
    return [_output_end(name, makers, shapes, opset) for name in names]


def _is_read(node: onnx.NodeProto) -> bool:
    return node.domain in _STANDARD and node.op_type in {*ENDS, *COPIES, *_VIEWS, "Transpose"}


def _output_end(
    name: str, makers: Mapping[str, onnx.NodeProto], shapes: Mapping[str, list[Any]], opset: int
) -> End | None:
    moves: list[Move] = []
    while (node := makers.get(name)) is not None and node.domain in _STANDARD:
        source = node.input[0] if node.input else ""
        if node.op_type in ENDS:
            return _end(node, source, moves, shapes, opset)
        move = _move(node, shapes)
        if move is None:
            return None
        moves.append(move)
        name = source
    return None


def _move(node: onnx.NodeProto, shapes: Mapping[str, list[Any]]) -> Move | None:
    if node.op_type in COPIES:
        return Move()
    before, after = (shapes.get(name) for name in (node.input[0], node.output[0]))
    if node.op_type in _VIEWS and before is not None and after is not None:
        return Move(shapes=(before, after))
    if node.op_type == "Transpose":
        order = _attribute(node, "perm")
        if order is None and before is not None:
            order = range(len(before))[::-1]
        return None if order is None else Move(permutation=tuple(order))
    return None


def _end(
    node: onnx.NodeProto, source: str, moves: Sequence[Move], shapes: Mapping[str, list[Any]], opset: int
) -> End | None:
    kind = ENDS[node.op_type]
    if kind == "scores":
        return End("scores", 0, source, 0)
    flattens = node.op_type != "ArgMax" and opset < 13
    axis = _attribute(node, "axis")
    axis = (0 if kind == "labels" else 1 if flattens else -1) if axis is None else axis
    shape = shapes.get(source) or shapes.get(node.output[0])
    if shape is None and axis < 0:
        return None
    if shape is not None:
        axis %= max(len(shape), 1)
        # Before opset 13 all dimensions from this one on were one.
        if flattens and any(size != 1 for size in shape[axis + 1 :]):
            return None
    if kind == "labels":
        return End("labels", axis, source, axis)
    found = followed(axis, moves)
    return None if found is None else End("classes", found, source, axis)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _shapes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """Sizes of values by name, as far as they are stated or follow from what is; symbols and None for free ones."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # weights that are left out, operators of others: what the file states is what there is
        inferred = model
    stated = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    found: dict[str, list[Any]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *stated):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"?{value.name}.{at}"
                for at, dim in enumerate(tensor.shape.dim)
            ]
    literals: dict[str, Sequence[int]] = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found.update({name: list(dims) for name, dims in literals.items() if name not in found})
    return {name: [int(s) if isinstance(s, np.integer) else s for s in sizes] for name, sizes in found.items()}

"""Of which parts a value of an ONNX graph is concatenated, as far as nothing has mixed them since.

    Concat(boxes, scores; axis 1)  ->  Mul, Transpose, Reshape, ...  ->  output: a dimension, and sizes of the parts

A dimension is followed backward from the output to the concatenations that make it. Sizes are those that the file
states or that can be inferred.
"""

from collections.abc import Iterable
from contextlib import suppress

import onnx

__all__ = ["joined_parts"]

Shape = tuple[int | str | None, ...]

#: Operators that give each element what they make of the same element of their input.
_SAME_PLACE = frozenset(
    "Abs Cast Ceil Clip Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Not Pow PRelu "
    "Reciprocal Relu Round Sigmoid Sign Softplus Softsign Sqrt Tanh ThresholdedRelu Add Sub Mul Div Min Max Mod Where "
    "QuantizeLinear DequantizeLinear Dropout Softmax LogSoftmax".split()
)
#: Operators that leave a dimension as it is if its size stays.
_ALONG_OTHERS = frozenset({"Slice", "Split", "Pad", "Resize"})


def joined_parts(model: onnx.ModelProto, values: Iterable[str]) -> dict[str, dict[int, tuple[int, ...]]]:
    """For each of some values the sizes of its parts along each dimension that is concatenated.

    Args:
        model: weights may be left out of it.
        values: names of outputs, or of values inside.
    """
    with suppress(RuntimeError, ValueError, onnx.shape_inference.InferenceError):  # then sizes are those that it states
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    look = _Look(graph)
    found = {}
    for name in values:
        sizes = {axis: look.sizes(name, axis) for axis in range(len(look.shapes.get(name, ())))}
        found[name] = {axis: parts for axis, parts in sizes.items() if parts is not None and len(parts) > 1}
    return found


class _Look:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.shapes: dict[str, Shape] = {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in _dims(value)
            )
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self.shapes.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
        self.makers = {name: node for node in graph.node for name in node.output if name}

    def sizes(self, name: str, axis: int, depth: int = 0) -> tuple[int, ...] | None:
        """Sizes of a value's parts along a dimension: its whole size if it is one part, None if that is unknown."""
        shape = self.shapes.get(name, ())
        size = shape[axis] if axis < len(shape) else None
        whole = (size,) if isinstance(size, int) else None
        node = self.makers.get(name)
        if node is None or depth > len(self.makers):
            return whole
        if node.op_type == "Concat":
            at = next((a.i for a in node.attribute if a.name == "axis"), 0) % max(1, len(shape))
            if at == axis:
                each = [self.sizes(part, axis, depth + 1) for part in node.input]
                return None if None in each else tuple(size for part in each if part for size in part)
        for source, its_axis, times in self._before(node, name, axis):
            parts = self.sizes(source, its_axis, depth + 1)
            if parts is not None and len(parts) > 1:
                found = tuple(part * times for part in parts)
                return found if whole is None or sum(found) == size else whole
        return whole

    def _before(self, node: onnx.NodeProto, name: str, axis: int) -> list[tuple[str, int, int]]:
        """Values whose parts along a dimension are those of a result: with the dimension there, and how much larger."""
        shape = self.shapes.get(name, ())
        if node.op_type in _SAME_PLACE or (node.op_type == "Concat" and axis < len(shape)):
            # Broadcast operands are shorter, their dimensions are counted from the end.
            behind = axis - len(shape)
            sources = [(source, len(self.shapes.get(source, ())) + behind) for source in node.input if source]
            return [
                (source, at, 1)
                for source, at in sources
                if at >= 0 and self.shapes[source][at] == shape[axis] and self.shapes[source][at] != 1
            ]
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [*range(len(shape))][::-1])
            return [(node.input[0], order[axis], 1)] if axis < len(order) else []
        if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            return _through_reshape(node.input[0], self.shapes.get(node.input[0], ()), shape, axis)
        if node.op_type in _ALONG_OTHERS:
            source = self.shapes.get(node.input[0], ())
            is_whole = len(source) == len(shape) and axis < len(shape) and source[axis] == shape[axis]
            return [(node.input[0], axis, 1)] if is_whole else []
        return []


def _through_reshape(source: str, before: Shape, after: Shape, axis: int) -> list[tuple[str, int, int]]:
    """The dimension before a reshape whose parts lie one behind the other in a dimension after it."""
    left = 0
    while left < min(len(before), len(after)) and (
        before[left] == after[left] is not None or _is_batch(before, after, left)
    ):
        left += 1
    right = 0
    while right < min(len(before), len(after)) - left and before[-1 - right] == after[-1 - right] is not None:
        right += 1
    if axis < left:
        return [(source, axis, 1)]
    if axis >= len(after) - right:
        return [(source, axis - len(after) + len(before), 1)]
    merged = before[left : len(before) - right]
    if axis != left or len(after) - right - left != 1:
        return []
    # Several dimensions become one: parts along the first of them stay whole; those of size 1 do not count.
    while len(merged) > 1 and merged[0] == 1:
        left, merged = left + 1, merged[1:]
    times = 1
    for size in merged[1:]:
        if not isinstance(size, int):
            return []
        times *= size
    return [(source, left, times)]


def _is_batch(before: Shape, after: Shape, at: int) -> bool:
    """Is it a free first size in both, whatever its name?"""
    return at == 0 and not isinstance(before[at], int) and not isinstance(after[at], int)


def _dims(value: onnx.ValueInfoProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim

"""The part of an ONNX graph behind its last layers that has no torch form, and needs none to learn.

    layers with weights -> raw heads -> box arithmetic -> NonMaxSuppression, If, a plugin's operator, ... -> outputs

The raw heads are learned in place of the outputs that come out of it. The file keeps it, of course.
"""

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from graphprune.passes.onnx.decoding import LAYERS

__all__ = ["cut_rest"]

_SIZES = frozenset({"Shape", "Size"})
_NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "PRelu"})
_SHIFTS = frozenset({"Add", "Sub", "Mul", "Div"})


def cut_rest(graph: ir.Graph, unknown: Collection[ir.Node]) -> list[ir.Value] | None:
    """What the graph gives without the nodes `unknown`, all that reads from them, and the decoding before them.

    Args:
        graph: its nodes in the order of computation.
        unknown: nodes that have no torch form.

    Returns:
        The raw heads that enter that part, and the outputs that do not come out of it; None where layers are in it.
    """
    rest: dict[ir.Node, None] = {}
    inside: set[ir.Value] = set()
    for node in graph:
        if node in unknown or any(value in inside for value in _reads(node)):
            rest[node] = None
            inside.update(node.outputs)
    if any(_is_layer(node) for node in rest):
        return None
    numbers = _numbers(graph)
    found = [*_entering(graph, rest, numbers), *(value for value in graph.outputs if value not in inside)]
    found = list(dict.fromkeys(found))
    is_of_layers = bool(found) and not any(value in graph.inputs for value in found)
    return found if is_of_layers else None


def _entering(graph: ir.Graph, rest: Collection[ir.Node], numbers: Collection[ir.Value]) -> list[ir.Value]:
    """The values on the way to `rest` behind which there is only decoding."""
    is_behind = _behind_layers(graph)
    found: dict[ir.Value, None] = {}
    waiting = [value for node in rest for value in _reads(node)]
    seen: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in seen or value not in numbers or node in rest:
            continue
        seen.add(value)
        if node is not None and node in is_behind:
            waiting += _reads(node)
        elif value.dtype is None or value.dtype.is_floating_point():
            found[value] = None
    order = {value: at for at, node in enumerate(graph) for value in node.outputs}
    return sorted(found, key=lambda value: order.get(value, -1))


def _behind_layers(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that are no part of a layer, and that no layer follows."""
    wanted: set[ir.Value] = set()
    found = set()
    for node in reversed(list(graph)):
        if _is_layer(node) or any(value in wanted for value in node.outputs):
            wanted.update(_reads(node))
        elif not _is_bias(node):
            found.add(node)
    return found


def _is_layer(node: ir.Node) -> bool:
    """Does it, or a body in it, compute with weights?"""
    if any(part.op_type in LAYERS for body in _bodies(node) for part in body):
        return True
    return node.op_type in LAYERS | _NORMS and any(_size(value) > 1 for value in node.inputs)


def _is_bias(node: ir.Node) -> bool:
    """Does it add or scale a number for each channel to what a layer gives?"""
    if node.op_type not in _SHIFTS:
        return False
    sources = [value.producer() for value in node.inputs if value is not None]
    literals = [value for value in node.inputs if _size(value)]
    is_after = any(source is not None and (_is_layer(source) or _is_bias(source)) for source in sources)
    return is_after and len(literals) == 1 and _size(literals[0]) == max(_shape(literals[0]), default=1)


def _shape(value: ir.Value | None) -> Sequence[int]:
    held = None if value is None else value.const_value
    return () if held is None else held.shape.numpy()


def _size(value: ir.Value | None) -> int:
    """How many numbers a literal holds; 0 for what is none."""
    held = None if value is None else value.const_value
    return 0 if held is None else held.size


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, bodies included."""
    inner = [value for body in _bodies(node) for value in (*_all_reads(body), *body.outputs)]
    return [*(value for value in node.inputs if value is not None), *(value for value in inner if value is not None)]


def _all_reads(body: Iterable[ir.Node]) -> list[ir.Value]:
    return [value for part in body for value in _reads(part)]


def _numbers(graph: ir.Graph) -> set[ir.Value]:
    """Values that depend on the numbers of the inputs, and not on their sizes alone."""
    found: set[ir.Value] = set(graph.inputs)
    for node in graph:
        if node.op_type not in _SIZES and any(value in found for value in _reads(node)):
            found.update(node.outputs)
    return found

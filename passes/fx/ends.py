"""What a captured graph says of its outputs; see `passes.channels.ends`."""

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphprune.passes.channels.ends import COPIES, ENDS, End, Move, followed

__all__ = ["kind_of", "output_end", "output_nodes", "value_of"]

_VIEWS = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ view_as expand_as".split()
)


def output_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the graph returns, flat and in order; what is no tensor is left out."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    flat, _ = pytree.tree_flatten(output.args[0])
    return [node for node in flat if isinstance(node, fx.Node) and value_of(node) is not None]


def value_of(node: fx.Node) -> torch.Tensor | None:
    """The tensor of symbols that stands for a node's result; None where that is no tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def kind_of(node: fx.Node) -> str:
    """The name of an ATen operator without namespace and overload; "" for anything else."""
    target = node.target
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else ""


def output_end(node: fx.Node) -> End | None:
    """What ends the network at an output; None where that says nothing."""
    moves: list[Move] = []
    while node.op == "call_function":
        kind = kind_of(node)
        if kind in ENDS:
            return _end(node, kind, moves)
        move = _move(node, kind)
        if move is None:
            return None
        moves.append(move)
        node = node.all_input_nodes[0]
    return None


def _move(node: fx.Node, kind: str) -> Move | None:
    """How a node moves dimensions; None where it does more than that."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    before, after = (None if n is None else value_of(n) for n in (source, node))
    if before is None or after is None:
        return None
    rank = before.ndim
    if kind in COPIES:
        return Move()
    if kind in _VIEWS:
        return Move(shapes=(_sizes(before), _sizes(after)))
    if kind == "permute":
        return Move(permutation=tuple(int(dim) % rank for dim in _argument(node, 1)))
    if kind in ("transpose", "t"):
        order = list(range(rank))
        a, b = (0, rank - 1) if kind == "t" else (int(_argument(node, at)) % rank for at in (1, 2))
        order[a], order[b] = order[b], order[a]
        return Move(permutation=tuple(order))
    return None


def _sizes(value: torch.Tensor) -> list[Any]:
    return [size if isinstance(size, int) else str(size) for size in value.shape]


def _end(node: fx.Node, kind: str, moves: list[Move]) -> End | None:
    source = node.all_input_nodes[0]
    value = value_of(source)
    if value is None or not value.is_floating_point():
        return None
    if ENDS[kind] == "scores":
        return End("scores", 0, source.name, 0)
    given = _argument(node, 1)
    if given is None or not value.ndim:  # over everything
        return None
    axis = int(given) % value.ndim
    if ENDS[kind] == "labels":
        return End("labels", axis, source.name, axis)
    found = followed(axis, moves)
    return None if found is None else End("classes", found, source.name, axis)


def _argument(node: fx.Node, at: int) -> Any:
    """An argument by its place, wherever it was given."""
    if at < len(node.args):
        return node.args[at]
    assert isinstance(node.target, torch._ops.OpOverload)
    argument = node.target._schema.arguments[at]
    return node.kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)

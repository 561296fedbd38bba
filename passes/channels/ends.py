"""What the last operators of a network say of an output: that it holds classes, along which dimension, and from what.

    numbers -> Softmax, LogSoftmax, ArgMax or Sigmoid -> operators that only move or copy -> output

Whoever ends a network so has said what its outputs are; a shape alone does not. Both front ends walk from an output
back to the operator that ends it, and name each operator by its kind here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["COPIES", "ENDS", "End", "Move", "followed", "viewed"]

EndKind = Literal["classes", "labels", "scores"]

#: Operators that end a network, by what their result is: shares of classes that exclude each other, the index of one,
#: shares of things that do not exclude each other.
ENDS: Mapping[str, EndKind] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "softmax", "_softmax", "log_softmax", "_log_softmax"), "classes"),
    **dict.fromkeys(("ArgMax", "argmax"), "labels"),
    **dict.fromkeys(("Sigmoid", "sigmoid", "sigmoid_"), "scores"),
}
#: Operators that leave every number, or nearly so, where it is.
COPIES = frozenset(
    "Identity Cast Dropout alias clone contiguous detach to _to_copy type_as dropout lift_fresh_copy float".split()
)


@dataclass(frozen=True)
class End:
    """What an output is, by the operator that ends the network there.

    Attributes:
        kind: "classes", "labels" (the index of the largest) or "scores".
        axis: dimension of the classes in the output; of no meaning for others.
        source: name of the value that enters that operator.
        source_axis: dimension of the classes there.
    """

    kind: EndKind
    axis: int
    source: str
    source_axis: int


@dataclass(frozen=True)
class Move:
    """How an operator moves dimensions.

    Attributes:
        permutation: for every dimension of its result, that of its input; None where `shapes` say it.
        shapes: of input and result; sizes are numbers or symbols.
    """

    permutation: tuple[int, ...] | None = None
    shapes: tuple[Sequence[Any], Sequence[Any]] | None = None

    def after(self, axis: int) -> int | None:
        """Where a dimension is in the result; None where it is not one dimension there."""
        if self.permutation is not None:
            return self.permutation.index(axis) if axis in self.permutation else None
        return axis if self.shapes is None else viewed(axis, *self.shapes)


def viewed(axis: int, before: Sequence[Any], after: Sequence[Any]) -> int | None:
    """Where a dimension is after a reshape that only puts other dimensions together or apart; None where it is not.

    Args:
        axis: the dimension.
        before: sizes, as numbers or symbols.
        after: likewise.
    """
    if not 0 <= axis < len(before):
        return None
    behind = _product(before[axis + 1 :])
    found = [
        at for at, size in enumerate(after) if str(size) == str(before[axis]) and _product(after[at + 1 :]) == behind
    ]
    # Sizes of 1 beside it make several places of one: they all hold the same.
    return found[0] if found else None


def _product(sizes: Sequence[Any]) -> tuple[int, tuple[str, ...]]:
    """Numbers multiplied, and the symbols."""
    number, symbols = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            symbols.append(str(size))
    return number, tuple(sorted(symbols))


def followed(axis: int, moves: Sequence[Move]) -> int | None:
    """Where a dimension is behind some operators, the last of which stands first."""
    found: int | None = axis
    for move in reversed(moves):
        if found is None:
            return None
        found = move.after(found)
    return found

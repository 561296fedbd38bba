"""What an output is: one table, for what learns it, what judges it and what reports that.

    kind     what it holds                           learned by                      judged by
    classes  shares or logits along one dimension    divergence of distributions     share of places of one class
    labels   the index of the largest of such        divergence of what enters       share of equal indices
    scores   shares that do not exclude each other   divergence of each of them      F-measure of what is above 0.5
    numbers  anything else                           squared error over the spread   distance

Found on the graph where its last operator says it (`passes.channels.ends`), and by the shape where that is silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from graphprune.passes.channels.ends import End
from graphprune.passes.errors import GraphPruneError
from graphprune.passes.onnx.ends import output_ends
from graphprune.runtime.onnx_session import load_proto

__all__ = ["NUMBERS", "OutputKind", "are_floats", "ends_of", "has_numbers", "kinds_of"]


@dataclass(frozen=True)
class OutputKind:
    """What an output is.

    Attributes:
        name: a row of the table above.
        axis: dimension of the classes.
    """

    name: Literal["classes", "labels", "scores", "numbers"]
    axis: int = 1


NUMBERS = OutputKind("numbers")


def kinds_of(
    shapes: Sequence[Sequence[int]],
    setting: str,
    ends: Sequence[End | None] = (),
    rows: int | None = None,
    floats: Sequence[bool] = (),
) -> tuple[OutputKind, ...]:
    """What each output is.

    Args:
        shapes: theirs.
        setting: what is known of them: "kl" says that they are scores of classes, "mse" that they are numbers, "auto"
            that their ends say it, and that a single one of shape (batch, classes) without an end is one of classes. A
            map without an end may be an image as well.
        ends: what ends the network at each, where that is known.
        rows: the batch, where it is known: as many rows as objects are no classes of images.
        floats: which of them are floating-point; by default all are.
    """
    floats = floats or [True] * len(shapes)
    ends = ends if len(ends) == len(shapes) else [None] * len(shapes)
    if setting == "mse":
        return (NUMBERS,) * len(shapes)
    found = [_by_end(shape, end, is_float) for shape, end, is_float in zip(shapes, ends, floats, strict=True)]
    if setting == "kl":
        return tuple(
            kind if kind.name in ("classes", "labels") or not is_float else OutputKind("classes")
            for kind, is_float in zip(found, floats, strict=True)
        )
    alone = [at for at, is_float in enumerate(floats) if is_float]
    if len(alone) == 1 and found[alone[0]] == NUMBERS and ends[alone[0]] is None:
        shape = shapes[alone[0]]
        if len(shape) == 2 and shape[1] > 1 and rows in (None, shape[0]):
            found[alone[0]] = OutputKind("classes")
    return tuple(found)


def _by_end(shape: Sequence[int], end: End | None, is_float: bool) -> OutputKind:
    if end is None or (end.kind == "labels") == is_float:
        return NUMBERS
    if end.kind == "classes" and (end.axis >= len(shape) or shape[end.axis] < 2):
        return NUMBERS
    return OutputKind(end.kind, end.axis)


def has_numbers(kinds: Sequence[OutputKind], floats: Sequence[bool] = ()) -> bool:
    """Is there a floating-point output that no agreement speaks of?"""
    floats = floats or [True] * len(kinds)
    return any(kind.name == "numbers" and is_float for kind, is_float in zip(kinds, floats, strict=True))


def ends_of(model: Any) -> list[End | None]:
    """For every output of a model what ends it: of an ONNX file or its content, or of a captured graph; else ()."""
    if isinstance(model, onnx.ModelProto):
        return output_ends(model)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        try:
            return output_ends(load_proto(model))
        except (GraphPruneError, DecodeError):  # whether it can be run is seen when it is opened
            return []
    if type(getattr(model, "graph", None)).__name__ != "Graph" or not hasattr(model, "meta"):
        return []
    from graphprune.passes.fx.ends import output_end, output_nodes

    return [output_end(node) for node in output_nodes(model.graph)]


def are_floats(arrays: Sequence[np.ndarray]) -> list[bool]:
    """Which of some arrays are floating-point."""
    return [bool(np.issubdtype(array.dtype, np.floating)) for array in arrays]

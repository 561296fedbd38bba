"""Sizes that a captured graph leaves free: the batch, and where it was exported so height and width."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["fixed_sizes", "free_sizes", "has_sizes_of", "inputs_of_other_sizes", "sizes_of"]

_POWER_OF_TWO = 32


def free_sizes(graph: fx.Graph) -> list[tuple[int, ...]]:
    """The dimensions of each input of a graph that may vary, in the order of the inputs; () for what is no tensor."""
    return [
        tuple(at for at, size in enumerate(getattr(value, "shape", ())) if _is_free(size)) for value in _inputs(graph)
    ]


def sizes_of(graph: fx.Graph) -> list[tuple[int, ...]]:
    """The shapes of the inputs that a graph was captured on; () for what is no tensor."""
    return [tuple(_number(size) for size in getattr(value, "shape", ())) for value in _inputs(graph)]


def has_sizes_of(graph: fx.Graph, inputs: Sequence[Any]) -> bool:
    """Was a graph captured on inputs of these sizes, whatever the batch?"""
    return [shape[1:] for shape in sizes_of(graph)] == [tuple(getattr(x, "shape", ()))[1:] for x in inputs]


def fixed_sizes(graph: fx.Graph, inputs: Sequence[Any]) -> str:
    """What of the shapes of some inputs, beyond the batch, a graph does not take, in words; "" where it takes all."""
    for at, (value, given) in enumerate(zip(_inputs(graph), inputs, strict=False)):
        own, shape = getattr(value, "shape", ()), tuple(getattr(given, "shape", ()))
        pairs = [*zip(own, shape, strict=False)][1:]
        if len(own) != len(shape) or any(not _is_free(n) and _number(n) != m for n, m in pairs):
            wanted = "x".join("?" if _is_free(n) or not dim else str(_number(n)) for dim, n in enumerate(own))
            return f"input {at} is {wanted or 'a number'}, {'x'.join(map(str, shape)) or 'a number'} was given"
    return ""


def inputs_of_other_sizes(graph: fx.Graph, inputs: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Inputs of a graph at other sizes than the batch, made of these ones; nothing where no such size is free.

    What a size must be a multiple of, a graph does not say. So the first ones are a little larger, and where the graph
    does not take them, others are worth a try that keep a power of two, or whatever the sizes are a multiple of.
    """
    values: list[Any] = [value for value in _inputs(graph) if isinstance(value, torch.Tensor)]
    free = [
        size
        for value in values
        for at, size in enumerate(value.shape)
        if at and _is_free(size) and size.node.expr.is_Symbol
    ]
    batch = {size.node.expr for value in values for size in value.shape[:1] if _is_free(size)}
    symbols = list(dict.fromkeys(size.node.expr for size in free if size.node.expr not in batch))
    hints = {size.node.expr: _number(size) for size in free}
    if not symbols or len(values) != len(inputs):
        return
    for times, more in ((0, 1), (0, _POWER_OF_TWO), (1, 0)):
        sizes = {s: hints[s] + (times * hints[s] + more) * at for at, s in enumerate(symbols, 1)}
        yield tuple(_at_sizes(x, value, sizes) for x, value in zip(inputs, values, strict=True))


def _at_sizes(x: torch.Tensor, value: Any, sizes: Mapping[Any, int]) -> torch.Tensor:
    for at, size in enumerate(value.shape):
        if at and _is_free(size):
            wanted = int(size.node.expr.subs(sizes))
            x = x.index_select(at, torch.arange(wanted) % x.shape[at])
    return x


def _inputs(graph: fx.Graph) -> list[Any]:
    return [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]


def _is_free(size: Any) -> bool:
    """Is a size a symbol? One that the model's code forbids to vary is a number by now."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _number(size: Any) -> int:
    hint = size if isinstance(size, int) else getattr(size.node, "hint", None)
    return -1 if hint is None else int(hint)

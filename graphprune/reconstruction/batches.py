"""The results of one node of a graph for all batches of images: kept, or computed again whenever they are asked for.

Where all images are at the same node at the same time, what has to be kept between two nodes is a multiple of one pass.
Large results of early layers are told apart by one limit: those up to it are kept, those above are made anew from what
is kept, batch by batch (compare Chen et al. 2016 on training with sublinear memory).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.data import Source
from graphprune.data.batches import Batch, as_batch
from graphprune.passes.fx.analyze import concrete

_MOST_PASSES = 3.0  # through a network, for the sake of memory

__all__ = ["Again", "Batches", "ImageBatches", "Kept", "RowBlocks", "bytes_an_image", "kept_nodes", "small_enough"]


class Batches(Sequence[Any]):
    """The results of one node for every batch."""


class Kept(Batches):
    """Results that lie in memory."""

    def __init__(self, values: Sequence[Any] | Iterator[Any]) -> None:
        self._values = list(values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        return self._values[number]


class Again(Batches):
    """Results that are computed when they are asked for.

    Args:
        one: gives that of one batch.
        count: of batches.
        keeps_last: whether that of the last batch asked for is held, where several nodes ask for it.
    """

    def __init__(self, one: Callable[[int], Any], count: int, keeps_last: bool = False) -> None:
        self._one, self._count, self._keeps_last = one, count, keeps_last
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        if self._last[0] == number:
            return self._last[1]
        value = self._one(number)
        if self._keeps_last:
            self._last = (number, value)
        return value


class ImageBatches(Sequence[Batch]):
    """Images as the network takes them, normalized when a batch is asked for; no batch holds both kinds.

    Args:
        images: the images, those to fit to first.
        first: how many of them these are; the others are held out.
        size: of a batch at most.
    """

    def __init__(self, images: Source, first: int, size: int) -> None:
        self._images = images
        self._slices = [
            slice(start, min(start + size, end))
            for begin, end in ((0, first), (first, len(images)))
            for start in range(begin, end, size)
        ]
        #: The batches from this one on are held out.
        self.held = -(-first // size)

    def __len__(self) -> int:
        return len(self._slices)

    def sizes(self) -> list[int]:
        """Images of each batch."""
        return [part.stop - part.start for part in self._slices]

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        part = self._slices[number]
        return as_batch(self._images.batch(np.arange(part.start, part.stop)))


class RowBlocks(Sequence[Tensor]):
    """Rows that come batch by batch, in one piece of memory: many small pieces keep what is freed between them."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._ends: list[int] = [0]

    def add(self, rows: Tensor, share: float) -> None:
        """Take in the rows of one more batch, which holds this share of all images. Shapes: rows (rows, n)."""
        end = self._ends[-1] + len(rows)
        if self._rows is None:
            self._rows = rows.new_empty(max(end, round(len(rows) / share)), rows.shape[1])
        if end > len(self._rows):
            self._rows = torch.cat([self._rows, self._rows.new_empty(end, rows.shape[1])])
        self._rows[self._ends[-1] : end] = rows
        self._ends.append(end)

    def all(self) -> Tensor:
        """(rows, n) of all batches."""
        assert self._rows is not None
        return self._rows[: self._ends[-1]]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "RowBlocks":
        """The same batches with other rows."""
        found = RowBlocks()
        if len(self):
            found._rows, found._ends = change(self.all()), list(self._ends)
        return found

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> list[Tensor]: ...
    def __getitem__(self, number: int | slice) -> Tensor | list[Tensor]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.all()[self._ends[number] : self._ends[number + 1]]


def bytes_an_image(graph: fx.Graph) -> dict[fx.Node, int]:
    """Bytes of each result that depends on the images, for one of them."""
    batch = 1
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function"):
            continue
        value = node.meta.get("val")
        values = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Tensor)]
        if node.op == "placeholder" and values and values[0].ndim:
            batch = max(1, concrete(values[0].shape[0]))
        from_images = [found[source] for source in node.all_input_nodes if source in found]
        if node.op == "placeholder" or from_images:
            own = sum(v.element_size() * int(np.prod([concrete(s) for s in v.shape])) for v in values) // batch
            found[node] = own if values else max(from_images, default=0)
    return found


def kept_nodes(graph: fx.Graph, sizes: Mapping[fx.Node, int], limit: float) -> frozenset[fx.Node]:
    """The nodes whose results are kept: those up to the limit, and whatever depends on when something was written.

    Where something writes to what others read, these read it in their turn, before or after; what writes to its input
    is kept where that is, so that nothing is written twice.
    """
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if _writes(node):
            chain = _aliases(node.args[0])
            others = [user for one in chain for user in one.users if user not in chain and user is not node]
            if others:
                written.update(chain, others)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or node not in sizes:
            continue
        base = node.args[0] if _writes(node) else None
        if node in written or (base in found if base in sizes else sizes[node] <= limit):
            found.add(node)
    return frozenset(found)


def _writes(node: fx.Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and bool(node.args)
        and isinstance(node.args[0], fx.Node)
    )


def _aliases(node: Any) -> list[fx.Node]:
    """A node and what its result is a view of, or was written into."""
    found = [node]
    while isinstance(node.target, torch._ops.OpOverload) and node.args and isinstance(node.args[0], fx.Node):
        arguments = node.target._schema.arguments
        if not arguments or arguments[0].alias_info is None:
            break
        node = node.args[0]
        found.append(node)
    return found


def _peak(graph: fx.Graph, sizes: Mapping[fx.Node, int], limit: float) -> int:
    """Bytes an image that are kept at once, at most, where results above the limit are computed again.

    A result that is computed again needs what it is made from for as long as it is asked for itself.
    """
    kept = kept_nodes(graph, sizes, limit)
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        needs = frozenset().union(*(roots[source] for source in node.all_input_nodes if source in roots))
        for root in needs:
            last[root] = node
        if node in sizes:
            roots[node] = frozenset([node]) if node in kept else needs
    ends: dict[fx.Node, int] = {}
    for root, node in last.items():
        ends[node] = ends.get(node, 0) + sizes[root]
    alive = most = 0
    for node in graph.nodes:
        if node in kept and node in last:
            alive += sizes[node]
        most = max(most, alive)
        alive -= ends.get(node, 0)
    return most


def _passes(graph: fx.Graph, sizes: Mapping[fx.Node, int], limit: float, asked: frozenset[str]) -> float:
    """How many passes through the network it takes, about: results by their size, as often as they are computed.

    What several ask for of the same batch is computed once, unless one of them is kept and asks at a time of its own.
    """
    kept = kept_nodes(graph, sizes, limit)
    times: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        if node not in sizes:
            continue
        if node in kept:
            times[node] = 1
            continue
        users = [user for user in node.users if user in sizes]
        apart = [times[user] for user in users if user not in kept]
        times[node] = max(apart, default=0) + sum(user in kept for user in users) + (node.name in asked)
    return sum(size * times[node] for node, size in sizes.items()) / max(1, sum(sizes.values()))


def small_enough(graph: fx.Graph, room: int, images: int, asked: frozenset[str]) -> tuple[float, int]:
    """The largest limit with which so many bytes are enough, and for how many images: fewer where that takes too long.

    Args:
        graph: of the dense network.
        room: bytes.
        images: that there are.
        asked: the results that layers are solved from.
    """
    sizes = bytes_an_image(graph)
    found = (float(max(sizes.values(), default=0)), 2)
    for limit in sorted(set(sizes.values()), reverse=True):
        fitting = min(images, room // max(1, _peak(graph, sizes, limit)))
        if fitting > found[1] and _passes(graph, sizes, limit, asked) <= _MOST_PASSES:
            found = (float(limit), fitting)
        if found[1] == images:
            break
    return found

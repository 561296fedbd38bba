"""One pass of the dense network: what every layer is to give, and what it reads, at a few positions of every image."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from graphprune.data.batches import Batch
from graphprune.passes.fx.cut import named_tensors
from graphprune.passes.fx.dropout import bypass_dropout
from graphprune.passes.fx.fuse import activate_in_place, fold_norms
from graphprune.reconstruction.batches import ImageBatches, RowBlocks
from graphprune.reconstruction.layers import Layer
from graphprune.reconstruction.moments import Second
from graphprune.reconstruction.nodes import arguments, constants, deaths
from graphprune.reconstruction.sampling import centre, pick, positions, rows

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Seen", "Teacher"]

#: Columns beyond which second moments are taken of channels alone, and not of the taps of each.
_MOST_COLUMNS = 1536
_MOST_READ = 40_000_000  # numbers that a layer reads at all positions together
_ENOUGH = 100  # rows for each number that a result is made of: more tell nothing new
_THINNED = 2  # costs of elimination are told from fewer positions than weights are fitted to


@dataclass
class Seen:
    """What was seen of one layer.

    Attributes:
        positions: of an image that were looked at.
        shape: of its result for the first batch.
        target: by batch, (samples * positions, outputs) of what is to be kept up: the layer's result, or the sum that
            it goes into.
        read: by batch, (samples * positions, inputs) channels under the centre of the kernel, where they are needed.
        second: second moments of what it reads.
        is_by_tap: whether `second` has a column for each tap of a channel.
        spread: sum over rows of the variance of the target, summed over its channels. Of a branch it is the variance of
            the trunk, which an error of the branch is small against or not.
        mean: of the target.
        looked: rows of the target.
        depth: how far behind the first layer it comes, 1 for the last.
    """

    positions: int
    shape: tuple[int, ...] = ()
    target: RowBlocks = field(default_factory=RowBlocks)
    read: RowBlocks = field(default_factory=RowBlocks)
    second: Second | None = None
    is_by_tap: bool = True
    spread: float = 0.0
    mean: Tensor | float = 0.0
    looked: int = 0
    depth: float = 1.0

    def add_spread(self, rows: Tensor) -> None:
        """Take in more rows of the target (Chan, Golub & LeVeque 1983)."""
        mean = rows.double().mean(0)
        count = self.looked + len(rows)
        between = (mean - self.mean).square().sum() * self.looked * len(rows) / count
        self.spread += float(rows.var(0, correction=0).sum()) * len(rows) + float(between)
        self.mean = self.mean + (mean - self.mean) * (len(rows) / count)
        self.looked = count

    @property
    def variance(self) -> float:
        """Variance of the target, summed over its channels."""
        return self.spread / max(self.looked, 1)

    def worth(self, first: float) -> float:
        """What an error of the target counts, relative to its spread: `first` in the first layer, 1 in the last."""
        return (first + (1 - first) * self.depth) / max(self.variance, 1e-30)


class Teacher:
    """The dense network in inference, with norms folded into layers.

    Args:
        graph: channel groups of a torch model.
        layers: what to look at.
        number: positions of an image.
    """

    def __init__(self, graph: "ChannelGraph", layers: Sequence[Layer], number: int) -> None:
        self._module: CapturedModule = copy.deepcopy(graph.front_end.module).eval()
        bypass_dropout(self._module)
        fold_norms(self._module)
        activate_in_place(self._module)
        self._weights = named_tensors(graph.front_end.module)
        self._layers = layers
        self._number = number
        #: Those that channels are taken from, and not whole groups of a depthwise convolution.
        self._readers = {
            layer.name for layer in layers if layer.inputs(graph, self._weights[layer.weight].shape) is not None
        }
        self._constants = constants(self._module)
        self._nodes = {node.name: node for node in self._module.graph.nodes}
        for layer in layers:
            if layer.norm is not None:  # folded: what read it reads the layer now
                self._nodes.setdefault(layer.norm.node, self._nodes[layer.name])
        self._deaths = deaths(self._module.graph, self._looks())

    def _goal(self, layer: Layer) -> fx.Node:
        own = self._nodes[layer.result]
        return own if layer.join is None else self._nodes[layer.join.node]

    def _positions(self, layer: Layer) -> int:
        """How many of an image are looked at: fewer where a layer reads so much that rows would fill the memory."""
        shape = self._weights[layer.weight].shape
        taps = shape[2:].numel() if layer.is_conv else 1
        each = taps * shape[layer.axes[0]] // (layer.groups if layer.kind == "transposed" else 1)
        rows = min(_MOST_READ // max(1, each * layer.groups), _ENOUGH * each)
        return max(1, min(self._number, rows // max(1, self._images)))

    def _looks(self) -> list[tuple[fx.Node, fx.Node]]:
        """(node, later node): what is looked at once more when the later one is done."""
        return [(self._nodes[layer.source], self._goal(layer)) for layer in self._layers]

    @torch.no_grad()
    def watch(
        self,
        batches: ImageBatches,
        *,
        moments: bool,
        targets: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Seen]:
        """What was seen of each layer, by name.

        Args:
            batches: images.
            moments: take second moments of what layers read.
            targets: keep what they gave.
            progress: told how many of the batches are done.
        """
        last = max(len(self._layers) - 1, 1)
        self._images = sum(batches.sizes())
        seen = {
            layer.name: Seen(self._positions(layer), depth=number / last) for number, layer in enumerate(self._layers)
        }
        at: dict[fx.Node, list[tuple[Layer, str]]] = {}
        for layer in self._layers:
            own = self._nodes[layer.result]
            at.setdefault(own, []).append((layer, "result"))
            at.setdefault(self._goal(layer), []).append((layer, "target"))
        for number, batch in enumerate(batches):
            self._pass(number, batch, at, seen, moments, targets)
            if progress is not None:
                progress(number + 1, len(batches))
        return seen

    def _pass(
        self,
        number: int,
        batch: Batch,
        at: Mapping[fx.Node, list[tuple[Layer, str]]],
        seen: Mapping[str, Seen],
        moments: bool,
        targets: bool,
    ) -> None:
        env: dict[fx.Node, Any] = {**self._constants, **arguments(self._module.graph, batch)}
        for node in self._module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "call_function":
                args = fx.map_arg(node.args, env.__getitem__)
                env[node] = node.target(*args, **fx.map_arg(node.kwargs, env.__getitem__))
            for layer, what in at.get(node, ()):
                self._look(layer, what, number, len(batch), env, node, seen[layer.name], moments, targets)
            for source in self._deaths.get(node, ()):
                if source.op != "get_attr":
                    del env[source]

    def _look(
        self,
        layer: Layer,
        what: str,
        number: int,
        images: int,
        env: Mapping[fx.Node, Any],
        node: fx.Node,
        seen: Seen,
        moments: bool,
        targets: bool,
    ) -> None:
        value = env[node]
        where = positions(layer, value.shape, images, seen.positions, number)
        if what == "result" and moments and layer.name in self._readers:
            self._take_moments(layer, env[self._nodes[layer.source]], where, value, seen)
        if what == "target":
            seen.shape = seen.shape or tuple(value.shape)
            goal = pick(value, where, is_conv=layer.is_conv)
            seen.add_spread(goal)
            if targets:
                seen.target.add(goal, images / self._images)
                weight = self._weights[layer.weight]
                if layer.may_need_map(weight, self._images * where.shape[1] * len(value) // max(images, 1)):
                    read = env[self._nodes[layer.source]]
                    seen.read.add(centre(layer, read, where, value.shape, weight.shape[2:]), images / self._images)

    def _take_moments(self, layer: Layer, read: Tensor, where: Tensor, value: Tensor, seen: Seen) -> None:
        where = where[:, : max(1, where.shape[1] // _THINNED)]
        weight = self._weights[layer.weight]
        kernel = weight.shape[2:] if layer.is_conv else torch.Size()
        taps = kernel.numel()
        seen.is_by_tap = taps * read.shape[1 if layer.is_conv else -1] // layer.groups <= _MOST_COLUMNS
        if seen.is_by_tap or layer.groups > 1:
            found = rows(layer, read, where, value.shape, kernel, layer.groups)
        else:
            places = read.shape[2:].numel()
            found = pick(read, torch.div(where * places, value.shape[2:].numel(), rounding_mode="floor"), is_conv=True)[
                None
            ]
        if seen.second is None:
            seen.second = Second(found)
        else:
            seen.second.add(found)

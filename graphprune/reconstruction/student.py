"""The network after the cut, run node by node over all images; each layer is solved when it is reached, then run."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from graphprune.passes.fx.analyze import bind_arguments
from graphprune.passes.fx.cut import named_tensors
from graphprune.passes.fx.dropout import bypass_dropout
from graphprune.passes.fx.fuse import activate_in_place
from graphprune.reconstruction.batches import Again, Batches, ImageBatches, bytes_an_image, kept_nodes
from graphprune.reconstruction.curves import folded
from graphprune.reconstruction.fit import Fit, Problem, solve
from graphprune.reconstruction.layers import FEW_ROWS, MOST_COLUMNS, Layer
from graphprune.reconstruction.moments import Moments, Ridge
from graphprune.reconstruction.nodes import arguments, constants, deaths, evaluate, of_batches
from graphprune.reconstruction.sampling import pick, positions, rows
from graphprune.reconstruction.teacher import Seen
from graphprune.reconstruction.write import write

if TYPE_CHECKING:
    from graphprune.passes.fx.captured import CapturedModule

__all__ = ["Solved", "Student"]

_OF_MAPS = 1e-2  # strength of the ridge


@dataclass(frozen=True)
class Solved:
    """What became of one layer.

    Attributes:
        layer: the layer.
        fit: what was found; None where there was nothing to make up for, or no way to.
        reason: why it stayed as it was; empty where it was fitted.
    """

    layer: Layer
    fit: Fit | None
    reason: str


class Student:
    """A cut network whose layers are fitted to what they gave before.

    Args:
        module: the cut network; its weights are changed.
        layers: of the dense network, in the order of computation.
        seen: what was seen of them there, with targets.
        cut: names of the parameters that lost something.
        keep: by layer, which outputs are left.
        left: by layer, which channels of what it reads are left.
        dense: parameters and buffers of the dense network.
    """

    def __init__(
        self,
        module: "CapturedModule",
        layers: Sequence[Layer],
        seen: Mapping[str, Seen],
        cut: frozenset[str],
        keep: Mapping[str, Tensor],
        left: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
    ) -> None:
        self.module = module
        self._run = copy.deepcopy(module)
        bypass_dropout(self._run)
        activate_in_place(self._run)
        self._nodes = {node.name: node for node in self._run.graph.nodes}
        self._layers = {layer.name: layer for layer in layers if layer.name in self._nodes}
        self._advance_joins()
        self._seen, self._keep, self._left = seen, keep, left
        self._dense = {
            layer.name: folded(layer, dense, layer.groups) for layer in self._layers.values() if seen[layer.name].read
        }
        self._cut = cut
        self._tensors = named_tensors(module)
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}
        self._norms = {layer.norm.node for layer in self._layers.values() if layer.norm is not None}

    def _advance_joins(self) -> None:
        """Compute what a sum adds to a layer's result before the layer, where that was not done first."""
        for layer in self._layers.values():
            if layer.join is None or layer.join.other not in self._nodes:
                continue
            order = {node: number for number, node in enumerate(self._run.graph.nodes)}
            start, waiting = self._nodes[layer.name], [self._nodes[layer.join.other]]
            moved: set[fx.Node] = set()
            while waiting:
                node = waiting.pop()
                if order[node] > order[start] and node not in moved:
                    moved.add(node)
                    waiting += node.all_input_nodes
            for node in sorted(moved, key=order.__getitem__):
                start.prepend(node)

    @torch.no_grad()
    def fit(
        self, batches: ImageBatches, limit: float, progress: Callable[[int, int], None] | None = None
    ) -> list[Solved]:
        """Solve every layer that reads something else than before, from the first to the last.

        Args:
            batches: the images that the teacher saw.
            limit: bytes an image of the dense network's results that are kept; larger ones are computed again.
            progress: told how many of the layers are done.
        """
        env: dict[fx.Node, Any] = dict(constants(self._run))
        touched: set[fx.Node] = set()
        dying = deaths(self._run.graph)
        found: list[Solved] = []
        images = batches.sizes()
        self._kept = kept_nodes(self._run.graph, bytes_an_image(self._run.graph), limit)
        for node in self._run.graph.nodes:
            if node.op == "output":
                break
            if any(source in touched or str(source.target) in self._cut for source in node.all_input_nodes):
                touched.add(node)
            if node.op == "placeholder":
                env[node] = self._given(node, batches)
            elif node.name in self._layers:
                layer = self._layers[node.name]
                found.append(self._solve(layer, node, env, touched, batches.held, images))
                env[node] = self._evaluated(layer, node, env)
                if progress is not None:
                    progress(len(found), len(self._layers))
            elif node.name in self._norms and node.all_input_nodes[0].name in self._layers:
                env[node] = env[node.all_input_nodes[0]]
            elif node.op == "call_function":
                env[node] = evaluate(node, env, node in self._kept)
            for source in dying.get(node, ()):
                if source.op != "get_attr":
                    env.pop(source, None)
        return found

    def _given(self, node: fx.Node, batches: ImageBatches) -> Any:
        """What an input gets, for every batch; a number is the same for all."""

        def one(number: int) -> Tensor:
            return arguments(self._run.graph, batches[number])[node]

        first = one(0)
        return Again(one, len(batches)) if first.ndim else first

    def _solve(
        self,
        layer: Layer,
        node: fx.Node,
        env: Mapping[fx.Node, Any],
        touched: set[fx.Node],
        held: int,
        images: Sequence[int],
    ) -> Solved:
        groups = self._groups(layer, node)
        weight, bias = folded(layer, self._tensors, groups)
        self._folded[layer.name] = (weight, bias)
        source = self._nodes[layer.source]
        beside = self._beside(layer, env)
        if source not in touched and (beside is None or beside not in touched):
            return Solved(layer, None, "nothing that it reads has changed")
        if not isinstance(env.get(source), Batches):
            return Solved(layer, None, "what it reads does not depend on the images")
        if not weight.numel():
            return Solved(layer, None, "nothing of it is left")
        problem = self._problem(layer, groups, weight, bias, env, held, images)
        fit = solve(problem)
        if not fit.strength:
            return Solved(layer, fit, "no fit was better than plain removal on images held out")
        self._folded[layer.name] = (fit.weight, fit.bias)
        write(layer, self._tensors, fit)
        return Solved(layer, fit, "")

    def _beside(self, layer: Layer, env: Mapping[fx.Node, Any]) -> fx.Node | None:
        """The other operand of the sum that a layer's result goes into, if it is there already.

        Where two layers meet, one of them is fitted first, and only the other can make up for it.
        """
        other = None if layer.join is None else self._nodes.get(layer.join.other)
        return other if other in env else None

    def _problem(
        self,
        layer: Layer,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        env: Mapping[fx.Node, Any],
        held: int,
        images: Sequence[int],
    ) -> Problem:
        seen, keep = self._seen[layer.name], self._keep.get(layer.name)
        kernel = self._tensors[layer.weight].shape[2:] if layer.is_conv else ()
        read = env[self._nodes[layer.source]]
        other = self._beside(layer, env)
        x, goal, beside = [], [], []
        for number, value in enumerate(read):
            shape = (len(value), *seen.shape[1:])  # as many samples as it reads, and the positions that it had
            where = positions(layer, shape, images[number], seen.positions, number)
            x.append(rows(layer, value, where, shape, kernel, groups))
            wanted = seen.target[number]
            goal.append(wanted if keep is None else wanted[:, keep])
            if other is not None:
                beside.append(pick(env[other][number], where, is_conv=layer.is_conv))
        first = sum(part.shape[1] for part in x[:held])
        both = torch.cat(x, 1)
        mapped = self._mapped(layer, both, first) if seen.read else None
        goals, others = torch.cat(goal), torch.cat(beside) if beside else None
        return Problem(layer, both, goals, others, first, weight, bias, mapped)

    def _mapped(self, layer: Layer, x: Tensor, held: int) -> Tensor | None:
        """(1, n, m) weights of a convolution that reads B times the channels it has in place of all that there were.

        B is fitted to the middle of the kernel: B = (G_SS + λ s I)⁻¹ G_SC with the second moments of channels.
        """
        kernel = self._tensors[layer.weight].shape[2:]
        taps, columns = kernel.numel(), x.shape[2]
        if columns <= MOST_COLUMNS and held >= FEW_ROWS * columns:
            return None
        index = [size // 2 for size in kernel]
        middle = sum(at * math.prod(kernel[dim + 1 :]) for dim, at in enumerate(index))
        left = columns // taps
        own = x[:, :, middle * left : (middle + 1) * left]
        every = self._seen[layer.name].read.all()[None]
        prior = torch.zeros(1, left, every.shape[2], dtype=torch.float64)
        prior[0, torch.arange(left), self._left[layer.name]] = 1
        moments = Moments(own, held, is_biased=True)
        cross, _ = moments.cross(every[:, :held], False)
        back = Ridge(moments.second(False), _OF_MAPS).solve(cross, prior)[0]
        dense = self._dense[layer.name][0]
        keep = self._keep.get(layer.name)
        dense = dense if keep is None else dense[:, :, keep]
        return (back @ dense.reshape(taps, every.shape[2], -1)).reshape(1, columns, -1)

    def _groups(self, layer: Layer, node: fx.Node) -> int:
        return 1 if layer.groups == 1 else int(bind_arguments(node)["groups"])  # as the cut has left it

    def _evaluated(self, layer: Layer, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        """The layer with the norm behind it, in one."""
        weight, bias = self._folded[layer.name]
        held = self._tensors[layer.weight]
        matrix = layer.weight_of(weight, held.shape).to(held.dtype)
        shift = bias.flatten().to(held.dtype)
        read = env[self._nodes[layer.source]]
        rest = node.args[3:]
        kwargs = {key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")}
        target = node.target
        assert callable(target)

        def one(number: int) -> Any:
            x = read[number]
            if layer.kind == "matrix":
                return torch.matmul(x, matrix) + shift
            if layer.kind == "linear":
                return torch.nn.functional.linear(x, matrix, shift)
            return target(x, matrix, shift, *rest, **kwargs)

        return of_batches(node, one, len(read), node in self._kept)

"""The layers that mix channels, as a least-squares problem sees them: rows of what they read, a matrix, a result.

A layer's result is taken behind the batch norm that follows it alone, because both are one affine map. Where that goes
straight into an add, the sum is what counts (`Layer.join`); where the activation behind is flat, nothing is asked of
what disappears there (`Layer.low`, `Layer.high`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import bind_arguments
from graphprune.passes.fx.dropout import before_dropout

if TYPE_CHECKING:
    from graphprune.passes.channels.analysis import Binding, Op
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Join", "Layer", "Norm", "Unfit", "find_layers"]

aten = torch.ops.aten

_ADDS = (aten.add.Tensor, aten.add_.Tensor)
_MIXING = ("convolution", "linear", "matrix product", "matrix product with bias")
#: Columns beyond which channels are mapped as they are, and not each of their taps.
MOST_COLUMNS = 2304
#: Rows for each column below which likewise.
FEW_ROWS = 4
#: Activations that are constant below and above these numbers; arguments of the operator say others.
_FLAT: Mapping[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "hardswish": (-3.0, math.inf),
    "hardsigmoid": (-3.0, 3.0),
}


@dataclass(frozen=True)
class Norm:
    """A batch norm of inference, by the names of its node and tensors; scale and shift may be absent."""

    node: str
    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True)
class Join:
    """The add that a layer's result goes into: the add's node, and the node of the other operand."""

    node: str
    other: str


@dataclass(frozen=True)
class Layer:
    """A convolution or a product with a matrix, whose weight is a parameter that nothing else reads.

    Attributes:
        name: its node.
        source: the node that it reads.
        result: the node whose result is its own: the batch norm behind it, or itself.
        weight: name of the parameter.
        bias: name of the parameter, or None.
        norm: the batch norm behind it that nothing else comes between.
        kind: "conv", "transposed", "linear" (weight (out, in)) or "matrix" (weight (in, out)).
        groups: of a grouped convolution; of the dense one.
        stride: of each dimension of positions.
        padding: what is added before each dimension of positions.
        dilation: likewise.
        join: the add that its result goes into and nowhere else.
        low: results (or sums) below this all count the same.
        high: likewise above.
    """

    name: str
    source: str
    result: str
    weight: str
    bias: str | None
    norm: Norm | None
    kind: str
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    join: Join | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_conv(self) -> bool:
        """Does it have channels along dimension 1, and positions behind them?"""
        return self.kind in ("conv", "transposed")

    @property
    def is_biased(self) -> bool:
        """Can it add any constant to its result?"""
        return self.bias is not None or (self.norm is not None)

    def may_need_map(self, weight: Tensor, rows: int) -> bool:
        """Does it have several taps a channel, and too many columns or too few rows for weights of their own?"""
        if self.kind != "conv" or self.groups > 1:
            return False
        taps, columns = weight.shape[2:].numel(), weight.shape[1:].numel()
        return taps > 1 and (columns > MOST_COLUMNS or rows < FEW_ROWS * columns)

    @property
    def axes(self) -> tuple[int, int]:
        """Dimensions of the weight along which its inputs and its outputs lie."""
        return (0, 1) if self.kind in ("transposed", "matrix") else (1, 0)

    @property
    def target(self) -> str:
        """The node whose result is to be what it was: the add, or its own."""
        return self.result if self.join is None else self.join.node

    def matrices(self, weight: Tensor, groups: int) -> Tensor:
        """The weight as (groups, taps * inputs of a group, outputs of a group), taps slowest."""
        if self.kind == "linear":
            return weight.t()[None]
        if self.kind == "matrix":
            return weight[None]
        taps = math.prod(weight.shape[2:])
        if self.kind == "transposed":
            return weight.reshape(groups, -1, weight.shape[1], taps).permute(0, 3, 1, 2).flatten(1, 2)
        return weight.reshape(groups, -1, weight.shape[1], taps).permute(0, 3, 2, 1).flatten(1, 2)

    def weight_of(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of `matrices`, for a weight of that shape."""
        if self.kind == "linear":
            return matrices[0].t().contiguous()
        if self.kind == "matrix":
            return matrices[0].contiguous()
        groups, taps = len(matrices), math.prod(shape[2:])
        apart = matrices.reshape(groups, taps, -1, matrices.shape[2])
        order = (0, 2, 3, 1) if self.kind == "transposed" else (0, 3, 2, 1)
        return apart.permute(order).reshape(tuple(shape)).contiguous()

    def inputs(self, graph: "ChannelGraph", shape: Sequence[int]) -> np.ndarray | None:
        """(taps * inputs of a group,) group of channels that each row of `matrices` goes with, -1 where it stays.

        None where the layer takes no channels apart: every group of a depthwise convolution goes as a whole.
        """
        dim = self.axes[0]
        ids = graph.axes.get((self.weight, dim))
        if ids is None or (self.groups > 1 and self._is_whole(shape)):
            return None
        size = len(ids) // self.groups if self.kind == "transposed" else len(ids)
        return np.tile(ids[:size], math.prod(shape[2:]) if self.is_conv else 1)

    def _is_whole(self, shape: Sequence[int]) -> bool:
        """Does a group of it go as a whole, and no part of one?"""
        apart = [shape[0] // self.groups, shape[1]]
        return self.groups >= max(apart)


@dataclass(frozen=True)
class Unfit:
    """A layer that has no least-squares form here, and why."""

    name: str
    weight: str
    reason: str


def find_layers(graph: "ChannelGraph") -> tuple[list[Layer], list[Unfit]]:
    """The layers of a captured model in the order of computation, and those that cannot be solved for."""
    return _Finder(graph).find()


class _Finder:
    def __init__(self, graph: "ChannelGraph") -> None:
        self._front = graph.front_end
        self._nodes: dict[str, fx.Node] = {node.name: node for node in self._front.module.graph.nodes}
        self._order = {name: number for number, name in enumerate(self._nodes)}
        #: How often a parameter or buffer is read.
        self._reads = Counter(
            str(node.target) for node in self._nodes.values() if node.op == "get_attr" for user in node.users
        )

    def find(self) -> tuple[list[Layer], list[Unfit]]:
        layers: list[Layer] = []
        unfit: list[Unfit] = []
        for name, node in self._nodes.items():
            rule, binding, op = self._front.ops.get(name, (None, None, None))
            if rule is None or rule.name not in _MIXING:
                continue
            weight = op.inputs.get("weight", op.inputs.get("other"))
            if not isinstance(weight, Value) or weight.parameter is None:
                if not isinstance(weight, Value) or not weight.constant:
                    unfit.append(Unfit(name, "", "it multiplies two results"))
                continue
            found = self._layer(node, binding, op, weight)
            if isinstance(found, Layer):
                layers.append(found)
            else:
                unfit.append(Unfit(name, weight.parameter, found))
        return layers, unfit

    def _layer(self, node: fx.Node, binding: "Binding", op: "Op", weight: Value) -> "Layer | str":
        source = _argument(node, binding, "input")
        if not isinstance(source, fx.Node) or source.op == "get_attr":
            return "it reads no result"
        source = before_dropout(source)  # which is not there where the network is run
        if self._reads[str(weight.parameter)] > 1:
            return "its weight is used elsewhere, too"
        bias_value, bias = op.optional("bias"), None
        if bias_value is not None:
            bias = bias_value.parameter
            if bias is None or self._reads[bias] > 1 or len(bias_value.shape) != 1:
                return "its bias is no parameter of its own"
        shape, is_conv = weight.shape, "groups" in op.attrs
        if is_conv and op.value("input").rank != weight.rank:
            return "its input has no batch"
        if not is_conv and (weight.rank != 2 or op.value("input").rank < 2):
            return "it multiplies a vector or a stack of matrices"
        norm = self._norm(node, len(shape) if is_conv else 2)
        result = node if norm is None else self._nodes[norm.node]
        join = self._join(node, result)
        low, high = _flat(result if join is None else self._nodes[join.node])
        common: dict[str, Any] = {"norm": norm, "join": join, "low": low, "high": high, "result": result.name}
        if not is_conv:
            kind = "linear" if "weight" in op.inputs else "matrix"
            return Layer(node.name, source.name, weight=str(weight.parameter), bias=bias, kind=kind, **common)
        kind = "transposed" if op.attrs["transposed"] else "conv"
        dims = len(shape) - 2
        stride, dilation = (_each(op.attrs.get(name, 1), dims, 1) for name in ("stride", "dilation"))
        padding = _padding(op.attrs.get("padding", 0), shape[2:], dilation)
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        geometry["groups"] = op.attrs["groups"]
        return Layer(node.name, source.name, weight=str(weight.parameter), bias=bias, kind=kind, **geometry, **common)

    def _norm(self, node: fx.Node, rank: int) -> Norm | None:
        user = next(iter(node.users), None)
        if len(node.users) != 1 or user is None or user.target is not aten.batch_norm.default or user.args[5]:
            return None
        if user.args[0] is not node or node.meta["val"].ndim != rank:
            return None
        sources: list[Any] = list(user.args[1:5])
        if any(s is not None and (s.op != "get_attr" or self._reads[str(s.target)] > 1) for s in sources):
            return None
        weight, bias, mean, variance = (None if s is None else str(s.target) for s in sources)
        if mean is None or variance is None:
            return None
        return Norm(user.name, weight, bias, mean, variance, float(user.args[7]))  # type: ignore[arg-type]

    def _join(self, node: fx.Node, result: fx.Node) -> Join | None:
        """The add behind a result, where the other operand is there before the layer is."""
        user = next(iter(result.users), None)
        if len(result.users) != 1 or user is None or user.target not in _ADDS or user.kwargs.get("alpha", 1) != 1:
            return None
        others = [a for a in user.args if isinstance(a, fx.Node) and a is not result]
        if len(others) != 1 or len(user.args) != 2 or others[0].op == "get_attr":
            return None
        same = [getattr(n.meta.get("val"), "shape", None) for n in (result, others[0], user)]
        if len({str(shape) for shape in same}) > 1 or not self._can_come_first(node, others[0]):
            return None
        return Join(user.name, before_dropout(others[0]).name)

    def _can_come_first(self, node: fx.Node, other: fx.Node) -> bool:
        """Is a result there before a node, or could it be: without it, and without what is written in between?"""
        start, end = self._order[node.name], self._order[other.name]
        waiting, moved = [other], {other} if end > start else set()
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source is node:
                    return False
                if self._order[source.name] > start and source not in moved:
                    moved.add(source)
                    waiting.append(source)
        read = {source for one in moved for source in one.all_input_nodes} | moved
        between = [n for n in self._nodes.values() if start <= self._order[n.name] < end and n not in moved]
        return not any(_writes(n) and n.all_input_nodes[0] in read for n in between)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _argument(node: fx.Node, binding: "Binding", name: str) -> Any:
    bound = bind_arguments(node)
    theirs = binding.names.get(name, name)
    return bound[theirs] if theirs in bound else bound.get("self")


def _each(value: Any, dims: int, default: int) -> tuple[int, ...]:
    numbers = [value] * dims if isinstance(value, int) else list(value or [default])
    return tuple(int(number) for number in (numbers * dims if len(numbers) == 1 else numbers)[:dims])


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding before each dimension; words say it, too."""
    if isinstance(value, str):
        if value == "valid":
            return (0,) * len(kernel)
        return tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
    return _each(value, len(kernel), 0)


def _flat(node: fx.Node) -> tuple[float, float]:
    """Where the only reader of a node, an activation, is constant: below the first number, above the second."""
    none = (-math.inf, math.inf)
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user is None or not isinstance(user.target, torch._ops.OpOverload):
        return none
    name = user.target._schema.name.removeprefix("aten::").rstrip("_")
    if name in ("hardtanh", "clamp") and "Tensor" not in user.target._overloadname:
        bound = bind_arguments(user)
        low, high = (bound.get("min_val", bound.get("min")), bound.get("max_val", bound.get("max")))
        limits = (-math.inf if low is None else low, math.inf if high is None else high)
        return limits if all(isinstance(limit, int | float) for limit in limits) else none
    return _FLAT.get(name, none)

"""Random ONNX graphs with many outputs, unlike scales, and detectors' ends; errors planted in one small part of them.

A graph is a backbone of some convolutions and one to three ends. Every end names the places where an error can be
planted: a literal, which of its elements, and the value in which the error shows before it is joined with others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from builder import Builder, run
from onnx import TensorProto, helper, numpy_helper

INT64 = TensorProto.INT64
CLASSES = 3


@dataclass(frozen=True)
class Place:
    """Where an error can be planted.

    Attributes:
        literal: its name.
        index: of the elements that change.
        shows: the value in which that is seen alone; "" where only a selection shows it.
        other: for literals of selections, what they become.
    """

    literal: str
    index: Any
    shows: str
    other: Any = None


@dataclass
class Graph:
    """A graph under construction, and its places."""

    b: Builder
    places: list[Place] = field(default_factory=list)
    outputs: int = 0

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.b.rng.integers(len(choices)))]

    def scale(self, low: float, high: float) -> np.float32:
        return np.float32(10 ** self.b.rng.uniform(low, high))

    def give(self, name: str, dtype: int = TensorProto.FLOAT) -> None:
        """Make a value an output."""
        self.outputs += 1
        end = self.b.call("Identity", name)
        self.b.outputs.append(helper.make_tensor_value_info(end, dtype, None))

    def head(self, x: str, width: int, outputs: int, bias: float = 0.0, kernel: int = 1) -> tuple[str, Place]:
        """A convolution that gives a part of an output; one of its channels is a place."""
        weight = self.b.weight(outputs, width, kernel, kernel)
        start = self.b.literal((bias + 0.1 * self.b.rng.standard_normal(outputs)).astype(np.float32))
        y = self.b.call("Conv", x, weight, start, pads=[kernel // 2] * 4)
        at = int(self.b.rng.integers(outputs))
        return y, Place(weight, (slice(at, at + 1),), y)

    def flat(self, x: str) -> str:
        """(n, c, h, w) as (n, c, positions)."""
        return self.b.call("Reshape", x, self.b.literal(np.array([0, 0, -1])))

    def times(self, x: str, factor: Any) -> str:
        return self.b.call("Mul", x, self.b.literal(np.asarray(factor, np.float32)))

    def place(self, place: Place, shows: str) -> None:
        self.places.append(Place(place.literal, place.index, shows))


def _backbone(g: Graph, x: str, width: int) -> tuple[str, int]:
    """Some convolutions; the features and their side (of 32)."""
    side, inputs = 32, 3
    for _ in range(int(g.b.rng.integers(2, 4))):
        stride = 2 if side > 8 else 1
        y = g.b.conv(x, inputs, width, strides=[stride] * 2)
        x = {
            "relu": lambda y=y: g.b.call("Relu", y),
            "silu": lambda y=y: g.b.call("Mul", y, g.b.call("Sigmoid", y)),
            "leaky": lambda y=y: g.b.call("LeakyRelu", y, alpha=0.1),
            "norm": lambda y=y: g.b.call("Relu", g.b.norm(y, width)),
        }[g.pick("relu", "silu", "leaky", "norm")]()
        side, inputs = side // stride, width
    return x, side


def _scores(g: Graph, x: str, width: int, side: int) -> None:
    """Class scores: logits, probabilities, or the index of the largest one."""
    pooled = g.b.call("Flatten", g.b.call("GlobalAveragePool", x))
    count = int(g.pick(1, 4, 10))
    weight, bias = g.b.weight(count, width), g.b.vector(count)
    y = g.b.call("Gemm", pooled, weight, bias, transB=1)
    at = int(g.b.rng.integers(count))
    g.places.append(Place(weight, (at,), y))
    kind = g.pick("logits", "softmax", "sigmoid", "label")
    if kind == "label" and count > 1:
        g.give(g.b.call("ArgMax", y, axis=1, keepdims=0), INT64)
        return
    y = {"softmax": lambda: g.b.call("Softmax", y, axis=1), "sigmoid": lambda: g.b.call("Sigmoid", y)}.get(
        kind if count > 1 else "", lambda: y
    )()
    g.places[-1] = Place(weight, (at,), y)
    g.give(y)


def _map(g: Graph, x: str, width: int, side: int) -> None:
    """A map whose channels have unlike scales."""
    count = int(g.b.rng.integers(1, 5))
    y, place = g.head(x, width, count)
    factors = np.array([g.scale(-3, 3) for _ in range(count)]).reshape(count, 1, 1)
    y = g.times(y, factors)
    g.place(place, y)
    if g.pick(True, False):
        g.place(Place(g.b.literals[-1].name, (int(g.b.rng.integers(count)),), y), y)
    g.give(y if g.pick(True, False) else g.b.call("Transpose", y, perm=[0, 2, 3, 1]))


def _vectors(g: Graph, x: str, width: int, side: int) -> None:
    """Small vectors of unlike scales, concatenated."""
    pooled = g.b.call("Flatten", g.b.call("GlobalAveragePool", x))
    parts = []
    for _ in range(int(g.b.rng.integers(2, 5))):
        count = int(g.b.rng.integers(1, 6))
        weight = g.b.weight(count, width)
        y = g.times(g.b.call("Gemm", pooled, weight, g.b.vector(count), transB=1), g.scale(-4, 3))
        at = int(g.b.rng.integers(count))
        g.place(Place(weight, (at,), y), y)
        parts.append(y)
    g.give(g.b.call("Concat", *parts, axis=1))


def _boxes(g: Graph, x: str, width: int, side: int, frame: float) -> str:
    """Boxes (n, 4, positions): corners decoded on a grid, in pixels of a frame."""
    y, place = g.head(x, width, 4)
    centre, size = g.b.call("Split", y, g.b.literal(np.array([2, 2])), outputs=2, axis=1)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side))).astype(np.float32)[None] + 0.5
    cells = g.b.literal(grid)
    centre = g.b.call("Add", g.b.call("Tanh", centre), cells)
    size = g.b.call("Exp", g.b.call("Tanh", size))
    half = g.times(size, 0.5)
    corners = [g.b.call("Sub", centre, half), g.b.call("Add", centre, half)]
    y = g.times(g.b.call("Concat", *corners, axis=1), np.float32(frame / side))
    g.place(place, y)
    cell = (0, int(g.b.rng.integers(2)), *(int(g.b.rng.integers(side)) for _ in range(2)))
    g.places.append(Place(cells, cell, y))
    return g.flat(y)


def _class_scores(g: Graph, x: str, width: int, bias: float) -> str:
    """Scores (n, classes, positions) between 0 and 1."""
    y, place = g.head(x, width, CLASSES, bias)
    y = g.b.call("Sigmoid", y)
    g.place(place, y)
    return g.flat(y)


def _detections(g: Graph, x: str, width: int, side: int) -> None:
    """Boxes and scores in one output, of one grid or of two."""
    frame, bias = g.pick(1.0, 32.0, 640.0), float(g.b.rng.uniform(-6, 0))
    grids = [(x, side)]
    if g.pick(True, False) and side >= 8:
        coarse = g.b.call("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        grids.append((coarse, side // 2))
    columns = [
        g.b.call("Concat", _boxes(g, y, width, s, frame), _class_scores(g, y, width, bias), axis=1) for y, s in grids
    ]
    y = columns[0] if len(columns) == 1 else g.b.call("Concat", *columns, axis=2)
    kind = g.pick("plain", "transposed", "flat")
    if kind == "transposed":
        y = g.b.call("Transpose", y, perm=[0, 2, 1])
    elif kind == "flat":
        y = g.b.call("Reshape", y, g.b.literal(np.array([0, -1])))
    g.give(y)


def _suppressed(g: Graph, x: str, width: int, side: int) -> None:
    """NonMaxSuppression at the end: objects are found, or none is."""
    boxes = g.b.call("Transpose", _boxes(g, x, width, side, g.pick(1.0, 64.0)), perm=[0, 2, 1])
    scores = _class_scores(g, x, width, float(g.pick(-7.0, -1.0, 0.0)))
    limits = [np.array([12]), np.float32([0.45]), np.float32([0.35])]
    names = [g.b.literal(limit) for limit in limits]
    chosen = g.b.call("NonMaxSuppression", boxes, scores, *names)
    for name, other in ((names[2], 0.6), (names[1], 0.7)):
        g.places.append(Place(name, (0,), "", other))
    columns = g.b.literal(np.array([0, 2]))
    y = g.b.call("GatherND", boxes, g.b.call("Gather", chosen, columns, axis=1))
    if g.pick(True, False):
        factor = g.b.literal(np.float32([1, 1, 1, 1]))
        y = g.b.call("Mul", y, factor)
        g.places.append(Place(factor, (int(g.b.rng.integers(4)),), "", 1.05))
    values = g.b.call("GatherND", scores, chosen)
    if g.pick(True, False):
        g.give(g.b.call("Concat", y, g.b.call("Unsqueeze", values, g.b.literal(np.array([1]))), axis=1))
    else:
        g.give(y)
        g.give(values)
    if g.pick(True, False):
        g.give(g.b.call("Gather", chosen, g.b.literal(np.array(1)), axis=1), INT64)


def _best(g: Graph, x: str, width: int, side: int) -> None:
    """The best so many boxes, by TopK over the scores."""
    boxes = g.b.call("Transpose", _boxes(g, x, width, side, g.pick(1.0, 640.0)), perm=[0, 2, 1])
    scores = _class_scores(g, x, width, float(g.b.rng.uniform(-3, 0)))
    best = g.b.call("ReduceMax", scores, axes=[1], keepdims=0)
    values, at = g.b.call("TopK", best, g.b.literal(np.array([6])), outputs=2, axis=1)
    at = g.b.call("Unsqueeze", at, g.b.literal(np.array([2])))
    chosen = g.b.call("GatherElements", boxes, g.b.call("Tile", at, g.b.literal(np.array([1, 1, 4]))), axis=1)
    g.give(g.b.call("Concat", chosen, g.b.call("Unsqueeze", values, g.b.literal(np.array([2]))), axis=2))


def _masked(g: Graph, x: str, width: int, side: int) -> None:
    """Scores where they are above a threshold, else zero: often zero throughout."""
    scores = _class_scores(g, x, width, float(g.pick(-8.0, -1.0, 0.0)))
    threshold = g.b.literal(np.float32(0.4))
    above = g.b.call("Greater", scores, threshold)
    g.places.append(Place(threshold, (), "", 0.6))
    g.give(g.b.call("Where", above, scores, g.b.literal(np.float32(0))))


ENDS: tuple[Callable[[Graph, str, int, int], None], ...] = (
    *(_scores, _map, _vectors, _detections, _detections, _suppressed, _best, _masked),
)


def random_graph(seed: int) -> tuple[onnx.ModelProto, list[Place]]:
    """A graph, and where errors can be planted."""
    g = Graph(Builder(17, seed))
    batch = g.pick("n", "n", "n", 1, 2)
    width = int(g.pick(6, 8, 12))
    x, side = _backbone(g, g.b.input((batch, 3, 32, 32)), width)
    for _ in range(int(g.b.rng.integers(1, 4))):
        g.pick(*ENDS)(g, x, width, side)
    return g.b.model(), g.places


def inputs_for(model: onnx.ModelProto, seed: int = 0) -> np.ndarray:
    """Random images, as `verify` makes them."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 16
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def with_error(model: onnx.ModelProto, places: Sequence[Place], seed: int) -> tuple[onnx.ModelProto, str] | None:
    """The model with an error in one small part, and what it is; None where none of some tries shows in its part."""
    rng = np.random.default_rng(seed)
    x = inputs_for(model)
    for _ in range(6):
        place = places[int(rng.integers(len(places)))]
        changed, factor = onnx.ModelProto(), float(rng.choice([1.03, 1.2, 0.5, 0.0, -1.0]))
        changed.CopyFrom(model)
        tensor = next(t for t in changed.graph.initializer if t.name == place.literal)
        array = numpy_helper.to_array(tensor).copy()
        array[place.index] = array[place.index] * factor if place.other is None else place.other
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        if not place.shows or _share(model, changed, place.shows, x) > 0.01:
            return changed, f"{place.literal}{list(place.index)} times {factor} ({place.shows or place.other})"
    return None


def _share(one: onnx.ModelProto, other: onnx.ModelProto, value: str, x: np.ndarray) -> float:
    """How much a value differs in that of its channels in which it does most, relative to what that holds."""
    a, b = (run(_giving(model, value), {"x": x})[0] for model in (one, other))
    axes = tuple(axis for axis in range(a.ndim) if axis != 1)
    return float((np.abs(a - b).max(axis=axes) / np.abs(a).max(axis=axes).clip(1e-30)).max())


def _giving(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    found.graph.output.append(onnx.ValueInfoProto(name=value))
    return found

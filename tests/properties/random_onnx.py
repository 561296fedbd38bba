"""Random ONNX graphs out of all rule families, written operator by operator as no exporter would.

A recipe is a list of (operator, source, other, number) as in `random_networks`: plain integers that are read
leniently, so that every list makes a graph. Tensors are images (n, channels, height, width) with a free batch and,
on request, free positions; what works on other layouts moves there and back.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import random_onnx_layers as layers
from builder import FLOAT, INT64
from onnx import TensorProto, helper
from onnx_dialect import OPSETS, Dialect, Sizes
from random_onnx_layers import Recipe, Result, divisors, pick


def _pool(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if h < 2 or w < 2:
        return None
    half = (c, h // 2, w // 2)
    kind = pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "mean"), n)
    if kind.startswith("Global"):
        return [(g.call(kind, x), (c, 1, 1))]
    if kind == "mean":
        return [(g.reduce("ReduceMean", x, (-2, -1)), (c, 1, 1))]
    return [(g.call(kind, x, kernel_shape=[2, 2], strides=[2, 2]), half)]


def _upsample(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    return None if h > 8 else [(g.resize(x, n), (c, 2 * h, 2 * w))]


def _parts(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, *rest = size
    if c < 4:
        return None
    first = c // 2 if n % 2 and c % 2 == 0 else 1 + n // 3 % (c - 1)
    widths = (first, c - first)
    if n % 3:
        names = g.split(x, widths, axis=pick((1, -3), n // 2), number=n)
    else:
        half = g.dim(x, 1, n // 3)
        end = g.call("Div", half, g.ints(2)) if first * 2 == c and g.opset >= 10 else None
        if end is not None:  # as traced from x[:, : x.shape[1] // 2]
            zero, axis = g.ints(0), g.ints(1)
            names = [g.call("Slice", x, zero, end, axis), g.call("Slice", x, end, half, axis)]
        else:
            names = [g.slice(x, 0, first, 1, number=n), g.slice(x, first, c if n % 2 else 2**31 - 1, 1, number=n)]
    return [(name, (width, *rest)) for name, width in zip(names, widths, strict=True)]


def _shuffle(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    groups = pick(divisors(c), n)
    batch = g.dim(x, 0, n)
    place = (g.dim(x, 2, n), g.dim(x, 3, n)) if g.spatial or n % 2 else (h, w)
    y = g.reshape(x, (batch, groups, c // groups, *place), n)
    y = g.call("Transpose", y, perm=[0, 2, 1, 3, 4])
    return [(g.reshape(y, (batch, c if n % 3 else -1, *place), n), size)]


def _pixels(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if n % 2 and c % 4 == 0 and h <= 8:
        mode = {"mode": pick(("DCR", "CRD"), n // 2)} if g.opset >= 11 else {}
        return [(g.call("DepthToSpace", x, blocksize=2, **mode), (c // 4, 2 * h, 2 * w))]
    if h % 2 == 0 and w % 2 == 0 and c <= 6:
        return [(g.call("SpaceToDepth", x, blocksize=2), (4 * c, h // 2, w // 2))]
    return None


def _move(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    order = [(5 * i + 1) % c for i in range(c)] if c % 5 else list(range(c))[::-1]
    kind = pick(("gather", "tile", "pad channels", "pad positions", "reverse", "expand", "fold", "strided"), n)
    if kind == "gather":
        return [(g.call("Gather", x, g.ints(*order, number=n), axis=1), size)]
    if kind == "tile":
        return None if c > 12 else [(g.call("Tile", x, g.ints(1, 2, 1, 1)), (2 * c, h, w))]
    if kind == "pad channels":
        return [(g.pad(x, [0, 1, 0, 0, 0, 2, 0, 0], pick((0.0, 0.5), n)), (c + 3, h, w))]
    if kind == "pad positions":
        return [(g.pad(x, [0, 0, 1, 0, 0, 0, 0, 1], pick((0.0, 0.5), n)), (c, h + 1, w + 1))]
    if kind == "reverse" and g.opset >= 10:
        return [(g.slice(x, -1, -(2**31), 1, -1), size)]
    if kind == "expand":
        pooled = g.reduce("ReduceMax", x, (2, 3))
        target = g.call("Shape", x) if g.spatial or n % 2 else g.ints(1, 1, h, w)
        return [(g.call("Expand", pooled, target), size)]
    if kind == "strided" and g.opset >= 10 and c % 2 == 0:
        return [(g.slice(x, k, c, 1, 2), (c // 2, h, w)) for k in (0, 1)]
    y = g.call("Tanh", g.reshape(x, (-1, 1, *((h, w) if not g.spatial else (g.dim(x, 2), g.dim(x, 3)))), n))
    return [(g.reshape(y, (-1, c, *((h, w) if not g.spatial else (g.dim(x, 2), g.dim(x, 3)))), n), size)]


def _over_channels(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    kinds = "ReduceSum ReduceMean ReduceMax ReduceL2 ReduceL1 ReduceSumSquare ReduceLogSumExp ReduceMin".split()
    kind = pick((*kinds, "Softmax", "LogSoftmax", "CumSum", "TopK", "ArgMax"), n)
    if kind in ("Softmax", "LogSoftmax"):
        return [(g.call(kind, x, axis=1 if g.opset < 13 or n % 2 else -3), size)]
    if kind == "CumSum":
        return [(g.call(kind, x, g.numbers(np.array(1), n)), size)] if g.opset >= 11 else None
    if kind == "TopK":
        return [(g.call(kind, x, g.ints(2), outputs=2, axis=1)[0], (2, h, w))] if g.opset >= 10 and c >= 2 else None
    if kind == "ArgMax":
        return [(g.call("Cast", g.call(kind, x, axis=1), to=FLOAT), (1, h, w))]
    return [(g.reduce(kind, x, pick(((1,), (-3,)), n)), (1, h, w))]


def _choose(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c = size[0]
    zero = g.literal(np.float32(0))
    kind = pick(("where", "where one", "clip", "glu", "einsum", "not", "dynamic zeros"), n)
    if kind == "where":
        return [(g.call("Where", g.call("Greater", x, zero), x, g.call("Mul", x, g.literal(np.float32(0.25)))), size)]
    if kind == "where one":
        return [(g.call("Where", g.call("Less", x, zero), x, g.literal(np.float32(1))), size)]
    if kind == "glu" and c % 2 == 0 and c >= 4:
        a, b = g.split(x, [c // 2] * 2, number=n)
        return [(g.call("Mul", a, g.call("Sigmoid", b)), (c // 2, *size[1:]))]
    if kind == "einsum" and g.opset >= 12:
        return [(g.call("Einsum", x, g.kernel(n, c, c), equation="nchw,cd->ndhw"), size)]
    if kind == "not":
        mask = g.call("Not", g.call("Greater", x, zero))
        return [(g.call("Mul", x, g.call("Cast", mask, to=FLOAT)), size)]
    if kind == "dynamic zeros":
        return [(g.call("Add", x, g.call("ConstantOfShape", g.call("Shape", x))), size)]
    return [(g.clip(x, *pick(((-1.0, 2.0), (0.0, 6.0), (0.1, 3.0)), n)), size)]


def _quantized(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Quantize and dequantize, or a convolution on integers."""
    if not g.quantizes:
        return None
    kind = pick(("around", "qdq", "qlinear", "integer", "dynamic"), n)
    c, h, w = size
    if kind == "around":
        return [(g.quantization(x, n // 5), size)]
    out = pick(layers.WIDTHS, n // 5)
    weight = g.rng.standard_normal((out, c, 3, 3)).astype(np.float32) / np.sqrt(9 * c)
    if kind == "qdq":
        y = g.call("Conv", g.quantization(x, n // 7), g.quantized_kernel(n // 3, weight), g.vector(out), pads=[1] * 4)
        return [(g.quantization(g.call("Relu", y), n // 11), (out, h, w))]
    scale, point = g.literal(np.float32(0.04)), g.literal(np.uint8(pick((0, 121), n // 7)))
    integers = g.literal(np.round(weight * 100).astype(np.int8))
    if kind == "integer" or (kind == "dynamic" and g.opset < 11):
        q = g.call("QuantizeLinear", x, scale, point)
        y = g.call("Cast", g.call("ConvInteger", q, integers, point, pads=[1] * 4), to=FLOAT)
        return [(g.call("Mul", y, g.literal(np.float32(4e-4))), (out, h, w))]
    if kind == "dynamic":
        q, s, p = g.call("DynamicQuantizeLinear", x, outputs=3)
        y = g.call("Cast", g.call("ConvInteger", q, integers, p, pads=[1] * 4), to=FLOAT)
        return [(g.call("Mul", y, g.call("Mul", s, g.literal(np.float32(0.01)))), (out, h, w))]
    after = (g.literal(np.float32(0.05)), g.literal(np.uint8(pick((0, 100), n // 11))))
    scales = g.literal(np.full(out if n % 2 else (), 0.01, np.float32))
    points = g.literal(np.zeros(out if n % 2 else (), np.int8))
    bias = [g.literal(g.rng.integers(-99, 99, out).astype(np.int32))] if n % 3 else []
    q = g.call("QuantizeLinear", x, scale, point)
    y = g.call("QLinearConv", q, scale, point, integers, scales, points, *after, *bias, pads=[1] * 4)
    if n // 13 % 2 and g.opset >= 12:
        y = g.call("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
    return [(g.call("DequantizeLinear", y, *after), (out, h, w))]


def _body(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """If, Loop or Scan, whose bodies read from outside."""
    flag = TensorProto.BOOL
    kind = pick(("If", "Loop", "Scan"), n)
    if kind == "If":
        above = g.call("Greater", g.call("ReduceMax", x, keepdims=0), g.literal(np.float32(0)))
        branches = [
            g.body(op, [helper.make_node(op, [x], [f"{x}_{op}"])], [], [(f"{x}_{op}", FLOAT, None)])
            for op in ("Abs", "Neg")
        ]
        return [(g.call("If", above, then_branch=branches[0], else_branch=branches[1]), size)]
    if kind == "Loop":
        nodes = [
            helper.make_node("Add", [f"{x}_v", x], [f"{x}_o"]),
            helper.make_node("Identity", [f"{x}_c"], [f"{x}_d"]),
        ]
        ins = [(f"{x}_i", INT64, ()), (f"{x}_c", flag, ()), (f"{x}_v", FLOAT, None)]
        body = g.body("loop", nodes, ins, [(f"{x}_d", flag, ()), (f"{x}_o", FLOAT, None)])
        return [(g.call("Loop", g.literal(np.array(2)), g.literal(np.array(True)), x, body=body), size)]
    nodes = [
        helper.make_node("Add", [f"{x}_s", f"{x}_e"], [f"{x}_t"]),
        helper.make_node("Tanh", [f"{x}_t"], [f"{x}_o"]),
    ]
    place = (None, None) if g.spatial else size[1:]
    ins, outs = ([(f"{x}_{name}", FLOAT, (size[0], *place)) for name in names] for names in ("se", "to"))
    body = g.body("scan", nodes, ins, outs)
    start = g.reduce("ReduceMax", x, (0,), keepdims=0)
    return [(g.call("Scan", start, x, outputs=2, body=body, num_scan_inputs=1)[1], size)]


def _foreign(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """An operator of another domain, which onnxruntime has and no rule knows."""
    kind = pick(("Gelu", "QuickGelu", "BiasGelu"), n)
    inputs = [x]
    if kind == "BiasGelu":
        if g.spatial:
            return None
        inputs.append(g.vector(size[2]))
    return [(g.call(kind, *inputs, domain="com.microsoft"), size)]


_UNARY: dict[str, Callable[[Dialect, str, Sizes, int], list[Result] | None]] = {
    "conv": layers.conv,
    "depthwise": layers.depthwise,
    "transposed": layers.transposed,
    "norm": layers.norm,
    "activation": layers.activation,
    "pointwise": layers.pointwise,
    "gate": layers.gate,
    "residual": layers.residual,
    "attention": layers.attention,
    "perceptron": layers.perceptron,
    "recurrent": layers.recurrent,
    "pool": _pool,
    "upsample": _upsample,
    "parts": _parts,
    "shuffle": _shuffle,
    "pixels": _pixels,
    "move": _move,
    "over channels": _over_channels,
    "choose": _choose,
    "quantized": _quantized,
    "body": _body,
    "foreign": _foreign,
}
_BINARY = ("Add", "Mul", "Max", "Sub", "Min", "Sum", "Mean", "Div")
#: Operators by how often they are drawn.
OPERATORS = [
    *(["conv"] * 6),
    *(["join", "cat", "norm", "activation", "pointwise"] * 3),
    *(["residual", "parts", "move", "quantized"] * 2),
    *_UNARY,
]


def _combine(g: Dialect, name: str, values: list[Result], first: int, other: int, n: int) -> list[Result] | None:
    """Two tensors element by element (broadcast where one has size 1), or up to three side by side."""
    x, size = values[first]
    if name == "cat":
        fitting = [i for i, (_, s) in enumerate(values) if s[1:] == size[1:]]
        chosen = [first, *(pick(fitting, other + k) for k in range(1 + n % 2))]
        width = sum(values[i][1][0] for i in chosen)
        if width > 32:
            return None
        return [(g.call("Concat", *(values[i][0] for i in chosen), axis=pick((1, -3), n // 2)), (width, *size[1:]))]
    fitting = [
        i
        for i, (_, s) in enumerate(values)
        if i and i != first and all(a == b or a == 1 for a, b in zip(s, size, strict=True))
    ]
    if not fitting:
        return None
    kind, y = pick(_BINARY, n), values[pick(fitting, other)][0]
    if kind == "Div":
        y = g.call("Add", g.call("Abs", y), g.literal(np.float32(1)))
    return [(g.call(kind, x, y), size)]


def random_model(recipe: Recipe, seed: int, opset: int = 20, spatial: bool = False) -> onnx.ModelProto:
    """The model of a recipe: input x (n, 3, 8, 8); what nobody reads is pooled, joined and classified."""
    g = Dialect(opset, seed, spatial)
    place = ("h", "w") if spatial else (8, 8)
    values: list[Result] = [(g.input(("n", 3, *place)), (3, 8, 8))]
    read: set[str] = set()
    for name, source, other, number in [("conv", 0, 0, 4), *recipe]:
        first = 1 + source % (len(values) - 1) if len(values) > 1 else 0
        if name in _UNARY:
            results = _UNARY[name](g, *values[first], number)
        else:
            results = _combine(g, name, values, first, other, number)
        if results is not None:
            values.extend(results)
    read = {name for node in g.nodes for name in node.input}
    leaves = [value for value in values[1:] if value[0] not in read]
    pooled = [g.call("GlobalAveragePool", name) for name, _ in leaves]
    joined = g.call("Flatten", g.call("Concat", *pooled, axis=1))
    width = sum(size[0] for _, size in leaves)
    y = g.call("Gemm", joined, g.weight(3, width, name="head"), g.vector(3), transB=1)
    g.output(y, ("n", 3))
    model = g.model(ir_version=_ir_version(opset), doc_string="a random graph", producer_name="a test")
    helper.set_model_props(model, {"recipe": str(len(recipe))})
    return model


def _ir_version(opset: int) -> int:
    """The one that came with the opset: which files of that opset have."""
    return max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def random_recipe(rng: np.random.Generator, length: int) -> Recipe:
    """A recipe drawn without hypothesis, for long runs with a seed."""
    names = [OPERATORS[i] for i in rng.integers(0, len(OPERATORS), length)]
    return [(name, *(int(v) for v in rng.integers(0, 1000, 3))) for name in names]


__all__ = ["OPERATORS", "OPSETS", "Recipe", "random_model", "random_recipe"]


def numbered_model(seed: int, number: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A graph of a long series, with its opset and how often it has each operator."""
    rng = np.random.default_rng((seed, number))
    opset, spatial = int(rng.choice(OPSETS)), bool(rng.random() < 0.25)
    model = random_model(random_recipe(rng, int(rng.integers(2, 12))), number, opset, spatial)
    return model, {"opset": opset, "operators": dict(Counter(node.op_type for node in model.graph.node))}

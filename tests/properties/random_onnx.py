"""Random ONNX graphs out of all rule families, written operator by operator as no exporter would.

A recipe is a list of (operator, source, other, number) as in `random_networks`: plain integers that are read
leniently, so that every list makes a graph. Tensors are images (n, channels, height, width) with a free batch and,
on request, free positions; what works on other layouts moves there and back.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from builder import FLOAT, INT64
from onnx import TensorProto, helper
from onnx_dialect import OPSETS, Dialect, Sizes

Recipe = list[tuple[str, int, int, int]]

_WIDTHS = (4, 6, 8, 12)

#: Operator -> (the opset that brought it, attributes).
_ACTIVATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "Relu": (1, {}),
    "Sigmoid": (1, {}),
    "Tanh": (1, {}),
    "LeakyRelu": (1, {"alpha": 0.2}),
    "Elu": (1, {}),
    "Selu": (1, {}),
    "HardSigmoid": (1, {}),
    "Softplus": (1, {}),
    "Softsign": (1, {}),
    "Exp": (1, {}),
    "Abs": (1, {}),
    "Neg": (1, {}),
    "Erf": (9, {}),
    "Sin": (7, {}),
    "Cos": (7, {}),
    "Atan": (7, {}),
    "Celu": (12, {}),
    "HardSwish": (14, {}),
    "Mish": (18, {}),
    "Gelu": (20, {}),
    "ThresholdedRelu": (10, {}),
    "Shrink": (9, {}),
    "Round": (11, {}),
    "Floor": (1, {}),
    "Dropout": (7, {}),
    "Identity": (1, {}),
}

Result = tuple[str, Sizes]
"""A value's name and its (channels, height, width)."""


def _pick(options: Any, number: int) -> Any:
    options = list(options)
    return options[number % len(options)]


def _divisors(n: int) -> list[int]:
    return [d for d in (1, 2, 3, 4, 6, 8, 12) if n % d == 0]


def _bias(g: Dialect, size: int, number: int) -> list[str]:
    return [] if number % 4 == 0 else [g.vector(size)]


def _conv(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    out, kernel, stride = _pick(_WIDTHS, n), _pick((1, 3), n // 4), _pick((1, 1, 2), n // 8)
    groups = _pick([d for d in _divisors(c) if out % d == 0], n // 24)
    weight = g.kernel(n // 5, out, c // groups, kernel, kernel)
    pads = {"pads": [kernel // 2] * 4} if n % 7 else {"auto_pad": "SAME_UPPER"}
    y = g.call("Conv", x, weight, *_bias(g, out, n), group=groups, strides=[stride] * 2, **pads)
    return [(y, (out, (h - 1) // stride + 1, (w - 1) // stride + 1))]


def _depthwise(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c = size[0]
    out = c * _pick((1, 1, 2), n)
    y = g.call("Conv", x, g.kernel(n // 3, out, 1, 3, 3), *_bias(g, out, n), group=c, pads=[1] * 4)
    return [(y, (out, *size[1:]))]


def _transposed(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if h > 8:
        return None
    out = _pick(_WIDTHS, n)
    groups = _pick([d for d in _divisors(c) if out % d == 0], n // 4)
    weight = g.kernel(n // 3, c, out // groups, 2, 2)
    y = g.call("ConvTranspose", x, weight, *_bias(g, out, n), group=groups, strides=[2, 2])
    return [(y, (out, 2 * h, 2 * w))]


def _channels_last(g: Dialect, x: str, layer: Callable[[str], str]) -> str:
    y = layer(g.call("Transpose", x, perm=[0, 2, 3, 1]))
    return g.call("Transpose", y, perm=[0, 3, 1, 2])


def _norm(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c = size[0]
    kind = _pick(("batch", "batch", "instance", "layer", "group", "rms", "lp", "lrn", "mvn"), n)
    if kind == "instance":
        y = g.call("InstanceNormalization", x, g.vector(c), g.vector(c))
    elif kind == "layer" and g.opset >= 17:
        y = _channels_last(g, x, lambda v: g.call("LayerNormalization", v, g.vector(c), g.vector(c), axis=-1))
    elif kind == "rms" and g.opset >= 23:
        y = _channels_last(g, x, lambda v: g.call("RMSNormalization", v, g.vector(c), axis=-1))
    elif kind == "group" and g.opset >= 21:
        y = g.call("GroupNormalization", x, g.vector(c), g.vector(c), num_groups=_pick(_divisors(c), n // 9))
    elif kind == "lp":
        y = g.call("LpNormalization", x, axis=_pick((1, -1), n // 9), p=2)
    elif kind == "lrn":
        y = g.call("LRN", x, size=3)
    elif kind == "mvn":
        y = g.call("MeanVarianceNormalization", x, axes=_pick(([0, 2, 3], [1]), n // 9))
    else:
        y = g.norm(x, c)
    return [(y, size)]


def _activation(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    kind = _pick(_ACTIVATIONS, n)
    since, attributes = _ACTIVATIONS[kind]
    if g.opset < since:
        return None
    y = g.call(kind, x, **attributes)
    return [(g.call("Tanh", y) if kind == "Exp" else y, size)]


def _pointwise(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """With a literal: one number, one for each channel, one for each position."""
    c, h, w = size
    shape = _pick(((), (c, 1, 1), (1, c, 1, 1), (1,), (c, h, w)), n)
    if g.spatial and len(shape) == 3 and shape[1] > 1:
        shape = (c, 1, 1)
    literal = g.numbers((0.5 + g.rng.random(shape)).astype(np.float32), n // 3)
    kind = _pick(("Add", "Mul", "Sub", "Div", "Max", "Min", "PRelu", "Pow"), n // 5)
    if kind == "Pow":
        return [(g.call("Pow", g.call("Abs", x), g.numbers(np.float32(2), n)), size)]
    if kind == "PRelu":
        return [(g.call(kind, x, literal), size)]
    inputs = (literal, x) if n % 11 == 0 and kind != "Div" else (x, literal)
    return [(g.call(kind, *inputs), size)]


def _gate(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Squeeze and excite, by convolutions or by Gemm."""
    c, inner = size[0], _pick((2, 3, 4), n)
    pooled = g.call("GlobalAveragePool", x) if n % 2 else g.reduce("ReduceMean", x, (2, 3))
    if n // 2 % 2:
        y = g.call("Flatten", pooled)
        y = g.call("Relu", g.call("Gemm", y, g.kernel(n // 3, inner, c), g.vector(inner), transB=1))
        y = g.call("Gemm", y, g.kernel(n // 5, inner, c), g.vector(c))
        y = g.squeeze("Unsqueeze", y, 2, 3)
    else:
        y = g.call("Relu", g.call("Conv", pooled, g.kernel(n // 3, inner, c, 1, 1), g.vector(inner)))
        y = g.call("Conv", y, g.kernel(n // 5, c, inner, 1, 1), g.vector(c))
    return [(g.call("Mul", x, g.call("Sigmoid", y)), size)]


def _residual(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, inner = size[0], _pick((4, 6), n)
    y = g.call("Conv", x, g.kernel(n // 2, inner, c, 1, 1))
    y = g.call("Relu", g.norm(y, inner))
    y = g.call("Conv", y, g.kernel(n // 3, c, inner, 3, 3), g.vector(c), pads=[1] * 4)
    y = g.norm(y, c) if n % 3 else y
    return [(g.call("Add", *((x, y) if n % 2 else (y, x))), size)]


def _tokens(g: Dialect, x: str, c: int, n: int) -> str:
    """(n, c, h, w) as (n, positions, c)."""
    y = g.reshape(x, (g.dim(x, 0, n), c, -1), n) if n % 2 else g.reshape(x, (0, 0, -1), n // 2)
    return g.call("Transpose", y, perm=[0, 2, 1])


def _image(g: Dialect, tokens: str, like: str, size: Sizes, n: int) -> str:
    """The inverse of `_tokens`, with the positions of `like`."""
    y = g.call("Transpose", tokens, perm=[0, 2, 1])
    if g.spatial or n % 2:
        return g.reshape(y, (g.dim(like, 0, n), size[0], g.dim(like, 2, n), g.dim(like, 3, n)))
    return g.reshape(y, (-1, *size), n)


def _linear(g: Dialect, tokens: str, inputs: int, outputs: int, n: int) -> str:
    y = g.call("MatMul", tokens, g.kernel(n, inputs, outputs))
    return g.call("Add", *((y, g.vector(outputs)) if n % 2 else (g.vector(outputs), y)))


def _attention(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, heads, width = size[0], _pick((2, 3), n), _pick((2, 4), n // 2)
    tokens = _tokens(g, x, c, n)
    inner = heads * width
    if n // 4 % 2:
        parts = g.split(_linear(g, tokens, c, 3 * inner, n), [inner] * 3, axis=2, number=n)
    else:
        parts = [_linear(g, tokens, c, inner, n // (k + 1)) for k in range(3)]
    batch = 0 if n % 3 else g.dim(tokens, 0, n)
    positions = -1 if n % 3 else g.dim(tokens, 1, n)
    apart = [g.reshape(part, (batch, positions, heads, width), n) for part in parts]
    q, v = (g.call("Transpose", part, perm=[0, 2, 1, 3]) for part in (apart[0], apart[2]))
    if n % 5 == 0 and g.opset >= 23:
        y = g.call("Attention", q, g.call("Transpose", apart[1], perm=[0, 2, 1, 3]), v)
    else:
        scores = g.call("MatMul", q, g.call("Transpose", apart[1], perm=[0, 2, 3, 1]))
        root = g.numbers(np.float32(np.sqrt(width)), n)
        if n % 7 == 0:  # the size of a head, as the graph computes it
            root = g.call("Sqrt", g.call("Cast", g.dim(q, 3, n), to=FLOAT))
        y = g.call("MatMul", g.call("Softmax", g.call("Div", scores, root), axis=3), v)
    y = g.reshape(g.call("Transpose", y, perm=[0, 2, 1, 3]), (0, -1, inner), n)
    return [(_image(g, _linear(g, y, inner, c, n), x, size, n), size)]


def _perceptron(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Two linear layers on channels last."""
    c, inner = size[0], _pick(_WIDTHS, n)
    y = _channels_last(g, x, lambda v: _linear(g, g.call("Relu", _linear(g, v, c, inner, n)), inner, c, n // 2))
    return [(y, size)]


def _recurrent(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """A recurrent layer over the positions."""
    c, h, w = size
    kind, both, units = _pick(("LSTM", "GRU", "RNN"), n), n // 3 % 2, _pick((2, 3), n // 6)
    gates, ways = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], 1 + both
    tokens = g.call("Transpose", _tokens(g, x, c, n), perm=[1, 0, 2])
    weights = [g.kernel(0, ways, gates * units, c), g.kernel(0, ways, gates * units, units)]
    bias = [g.weight(ways, 2 * gates * units)] if n % 2 else []
    direction = "bidirectional" if both else _pick(("forward", "reverse"), n // 12)
    more = {"linear_before_reset": n % 2} if kind == "GRU" else {}
    y, _ = g.call(kind, tokens, *weights, *bias, outputs=2, hidden_size=units, direction=direction, **more)
    y = g.reshape(g.call("Transpose", y, perm=[0, 2, 1, 3]), (0, 0, -1), n) if both else g.squeeze("Squeeze", y, 1)
    y = g.call("Transpose", y, perm=[1, 0, 2])
    return [(_image(g, y, x, (ways * units, h, w), n), (ways * units, h, w))]


def _pool(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if h < 2 or w < 2:
        return None
    half = (c, h // 2, w // 2)
    kind = _pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "mean"), n)
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
        names = g.split(x, widths, axis=_pick((1, -3), n // 2), number=n)
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
    groups = _pick(_divisors(c), n)
    batch = g.dim(x, 0, n)
    place = (g.dim(x, 2, n), g.dim(x, 3, n)) if g.spatial or n % 2 else (h, w)
    y = g.reshape(x, (batch, groups, c // groups, *place), n)
    y = g.call("Transpose", y, perm=[0, 2, 1, 3, 4])
    return [(g.reshape(y, (batch, c if n % 3 else -1, *place), n), size)]


def _pixels(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if n % 2 and c % 4 == 0 and h <= 8:
        mode = {"mode": _pick(("DCR", "CRD"), n // 2)} if g.opset >= 11 else {}
        return [(g.call("DepthToSpace", x, blocksize=2, **mode), (c // 4, 2 * h, 2 * w))]
    if h % 2 == 0 and w % 2 == 0 and c <= 6:
        return [(g.call("SpaceToDepth", x, blocksize=2), (4 * c, h // 2, w // 2))]
    return None


def _move(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    order = [(5 * i + 1) % c for i in range(c)] if c % 5 else list(range(c))[::-1]
    kind = _pick(("gather", "tile", "pad channels", "pad positions", "reverse", "expand", "fold", "strided"), n)
    if kind == "gather":
        return [(g.call("Gather", x, g.ints(*order, number=n), axis=1), size)]
    if kind == "tile":
        return None if c > 12 else [(g.call("Tile", x, g.ints(1, 2, 1, 1)), (2 * c, h, w))]
    if kind == "pad channels":
        return [(g.pad(x, [0, 1, 0, 0, 0, 2, 0, 0], _pick((0.0, 0.5), n)), (c + 3, h, w))]
    if kind == "pad positions":
        return [(g.pad(x, [0, 0, 1, 0, 0, 0, 0, 1], _pick((0.0, 0.5), n)), (c, h + 1, w + 1))]
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
    kind = _pick((*kinds, "Softmax", "LogSoftmax", "CumSum", "TopK", "ArgMax"), n)
    if kind in ("Softmax", "LogSoftmax"):
        return [(g.call(kind, x, axis=1 if g.opset < 13 or n % 2 else -3), size)]
    if kind == "CumSum":
        return [(g.call(kind, x, g.numbers(np.array(1), n)), size)] if g.opset >= 11 else None
    if kind == "TopK":
        return [(g.call(kind, x, g.ints(2), outputs=2, axis=1)[0], (2, h, w))] if g.opset >= 10 and c >= 2 else None
    if kind == "ArgMax":
        return [(g.call("Cast", g.call(kind, x, axis=1), to=FLOAT), (1, h, w))]
    return [(g.reduce(kind, x, _pick(((1,), (-3,)), n)), (1, h, w))]


def _choose(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c = size[0]
    zero = g.literal(np.float32(0))
    kind = _pick(("where", "where one", "clip", "glu", "einsum", "not", "dynamic zeros"), n)
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
    return [(g.clip(x, *_pick(((-1.0, 2.0), (0.0, 6.0), (0.1, 3.0)), n)), size)]


def _quantized(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Quantize and dequantize, or a convolution on integers."""
    if not g.quantizes:
        return None
    kind = _pick(("around", "qdq", "qlinear", "integer", "dynamic"), n)
    c, h, w = size
    if kind == "around":
        return [(g.quantization(x, n // 5), size)]
    out = _pick(_WIDTHS, n // 5)
    weight = g.rng.standard_normal((out, c, 3, 3)).astype(np.float32) / np.sqrt(9 * c)
    if kind == "qdq":
        y = g.call("Conv", g.quantization(x, n // 7), g.quantized_kernel(n // 3, weight), g.vector(out), pads=[1] * 4)
        return [(g.quantization(g.call("Relu", y), n // 11), (out, h, w))]
    scale, point = g.literal(np.float32(0.04)), g.literal(np.uint8(_pick((0, 121), n // 7)))
    integers = g.literal(np.round(weight * 100).astype(np.int8))
    if kind == "integer" or (kind == "dynamic" and g.opset < 11):
        q = g.call("QuantizeLinear", x, scale, point)
        y = g.call("Cast", g.call("ConvInteger", q, integers, point, pads=[1] * 4), to=FLOAT)
        return [(g.call("Mul", y, g.literal(np.float32(4e-4))), (out, h, w))]
    if kind == "dynamic":
        q, s, p = g.call("DynamicQuantizeLinear", x, outputs=3)
        y = g.call("Cast", g.call("ConvInteger", q, integers, p, pads=[1] * 4), to=FLOAT)
        return [(g.call("Mul", y, g.call("Mul", s, g.literal(np.float32(0.01)))), (out, h, w))]
    after = (g.literal(np.float32(0.05)), g.literal(np.uint8(_pick((0, 100), n // 11))))
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
    kind = _pick(("If", "Loop", "Scan"), n)
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
    kind = _pick(("Gelu", "QuickGelu", "BiasGelu"), n)
    inputs = [x]
    if kind == "BiasGelu":
        if g.spatial:
            return None
        inputs.append(g.vector(size[2]))
    return [(g.call(kind, *inputs, domain="com.microsoft"), size)]


_UNARY: dict[str, Callable[[Dialect, str, Sizes, int], list[Result] | None]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "norm": _norm,
    "activation": _activation,
    "pointwise": _pointwise,
    "gate": _gate,
    "residual": _residual,
    "attention": _attention,
    "perceptron": _perceptron,
    "recurrent": _recurrent,
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
        chosen = [first, *(_pick(fitting, other + k) for k in range(1 + n % 2))]
        width = sum(values[i][1][0] for i in chosen)
        if width > 32:
            return None
        return [(g.call("Concat", *(values[i][0] for i in chosen), axis=_pick((1, -3), n // 2)), (width, *size[1:]))]
    fitting = [
        i
        for i, (_, s) in enumerate(values)
        if i and i != first and all(a == b or a == 1 for a, b in zip(s, size, strict=True))
    ]
    if not fitting:
        return None
    kind, y = _pick(_BINARY, n), values[_pick(fitting, other)][0]
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

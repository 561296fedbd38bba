"""Layers of random ONNX graphs: convolutions, norms, activations, gates, blocks, attention and recurrent cells."""

from collections.abc import Callable
from typing import Any

import numpy as np
from builder import FLOAT
from onnx_dialect import Dialect, Sizes

Recipe = list[tuple[str, int, int, int]]

WIDTHS = (4, 6, 8, 12)

#: Operator -> (the opset that brought it, attributes).
ACTIVATIONS: dict[str, tuple[int, dict[str, Any]]] = {
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


def pick(options: Any, number: int) -> Any:
    options = list(options)
    return options[number % len(options)]


def divisors(n: int) -> list[int]:
    return [d for d in (1, 2, 3, 4, 6, 8, 12) if n % d == 0]


def bias(g: Dialect, size: int, number: int) -> list[str]:
    return [] if number % 4 == 0 else [g.vector(size)]


def conv(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    out, kernel, stride = pick(WIDTHS, n), pick((1, 3), n // 4), pick((1, 1, 2), n // 8)
    groups = pick([d for d in divisors(c) if out % d == 0], n // 24)
    weight = g.kernel(n // 5, out, c // groups, kernel, kernel)
    pads = {"pads": [kernel // 2] * 4} if n % 7 else {"auto_pad": "SAME_UPPER"}
    y = g.call("Conv", x, weight, *bias(g, out, n), group=groups, strides=[stride] * 2, **pads)
    return [(y, (out, (h - 1) // stride + 1, (w - 1) // stride + 1))]


def depthwise(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c = size[0]
    out = c * pick((1, 1, 2), n)
    y = g.call("Conv", x, g.kernel(n // 3, out, 1, 3, 3), *bias(g, out, n), group=c, pads=[1] * 4)
    return [(y, (out, *size[1:]))]


def transposed(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, h, w = size
    if h > 8:
        return None
    out = pick(WIDTHS, n)
    groups = pick([d for d in divisors(c) if out % d == 0], n // 4)
    weight = g.kernel(n // 3, c, out // groups, 2, 2)
    y = g.call("ConvTranspose", x, weight, *bias(g, out, n), group=groups, strides=[2, 2])
    return [(y, (out, 2 * h, 2 * w))]


def channels_last(g: Dialect, x: str, layer: Callable[[str], str]) -> str:
    y = layer(g.call("Transpose", x, perm=[0, 2, 3, 1]))
    return g.call("Transpose", y, perm=[0, 3, 1, 2])


def norm(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Not MeanVarianceNormalization: of a channel that does not vary onnxruntime makes NaN."""
    c = size[0]
    kind = pick(("batch", "batch", "instance", "layer", "group", "rms", "lp", "lrn"), n)
    if kind == "instance":
        y = g.call("InstanceNormalization", x, g.vector(c), g.vector(c))
    elif kind == "layer" and g.opset >= 17:
        y = channels_last(g, x, lambda v: g.call("LayerNormalization", v, g.vector(c), g.vector(c), axis=-1))
    elif kind == "rms" and g.opset >= 23:
        y = channels_last(g, x, lambda v: g.call("RMSNormalization", v, g.vector(c), axis=-1))
    elif kind == "group" and g.opset >= 21:
        y = g.call("GroupNormalization", x, g.vector(c), g.vector(c), num_groups=pick(divisors(c), n // 8))
    elif kind == "lp":
        y = g.call("LpNormalization", x, axis=pick((1, -1), n // 8), p=2)
    elif kind == "lrn":
        y = g.call("LRN", x, size=3)
    else:
        y = g.norm(x, c)
    return [(y, size)]


def activation(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    kind = pick(ACTIVATIONS, n)
    since, attributes = ACTIVATIONS[kind]
    if g.opset < since:
        return None
    y = g.call(kind, x, **attributes)
    return [(g.call("Tanh", y) if kind == "Exp" else y, size)]


def pointwise(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """With a literal: one number, one for each channel, one for each position."""
    c, h, w = size
    shape = pick(((), (c, 1, 1), (1, c, 1, 1), (1,), (c, h, w)), n)
    if g.spatial and len(shape) == 3 and shape[1] > 1:
        shape = (c, 1, 1)
    literal = g.numbers((0.5 + g.rng.random(shape)).astype(np.float32), n // 3)
    kind = pick(("Add", "Mul", "Sub", "Div", "Max", "Min", "PRelu", "Pow"), n // 5)
    if kind == "Pow":
        return [(g.call("Pow", g.call("Abs", x), g.numbers(np.float32(2), n)), size)]
    if kind == "PRelu":
        return [(g.call(kind, x, literal), size)]
    inputs = (literal, x) if n % 11 == 0 and kind != "Div" else (x, literal)
    return [(g.call(kind, *inputs), size)]


def gate(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Squeeze and excite, by convolutions or by Gemm."""
    c, inner = size[0], pick((2, 3, 4), n)
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


def residual(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, inner = size[0], pick((4, 6), n)
    y = g.call("Conv", x, g.kernel(n // 2, inner, c, 1, 1))
    y = g.call("Relu", g.norm(y, inner))
    y = g.call("Conv", y, g.kernel(n // 3, c, inner, 3, 3), g.vector(c), pads=[1] * 4)
    y = g.norm(y, c) if n % 3 else y
    return [(g.call("Add", *((x, y) if n % 2 else (y, x))), size)]


def to_tokens(g: Dialect, x: str, c: int, n: int) -> str:
    """(n, c, h, w) as (n, positions, c)."""
    y = g.reshape(x, (g.dim(x, 0, n), c, -1), n) if n % 2 else g.reshape(x, (0, 0, -1), n // 2)
    return g.call("Transpose", y, perm=[0, 2, 1])


def to_image(g: Dialect, tokens: str, like: str, size: Sizes, n: int) -> str:
    """The inverse of `tokens`, with the positions of `like`."""
    y = g.call("Transpose", tokens, perm=[0, 2, 1])
    if g.spatial or n % 2:
        return g.reshape(y, (g.dim(like, 0, n), size[0], g.dim(like, 2, n), g.dim(like, 3, n)))
    return g.reshape(y, (-1, *size), n)


def linear(g: Dialect, tokens: str, inputs: int, outputs: int, n: int) -> str:
    y = g.call("MatMul", tokens, g.kernel(n, inputs, outputs))
    return g.call("Add", *((y, g.vector(outputs)) if n % 2 else (g.vector(outputs), y)))


def attention(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    c, heads, width = size[0], pick((2, 3), n), pick((2, 4), n // 2)
    tokens = to_tokens(g, x, c, n)
    inner = heads * width
    if n // 4 % 2:
        parts = g.split(linear(g, tokens, c, 3 * inner, n), [inner] * 3, axis=2, number=n)
    else:
        parts = [linear(g, tokens, c, inner, n // (k + 1)) for k in range(3)]
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
    return [(to_image(g, linear(g, y, inner, c, n), x, size, n), size)]


def perceptron(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """Two linear layers on channels last."""
    c, inner = size[0], pick(WIDTHS, n)
    y = channels_last(g, x, lambda v: linear(g, g.call("Relu", linear(g, v, c, inner, n)), inner, c, n // 2))
    return [(y, size)]


def recurrent(g: Dialect, x: str, size: Sizes, n: int) -> list[Result] | None:
    """A recurrent layer over the positions."""
    c, h, w = size
    kind, both, units = pick(("LSTM", "GRU", "RNN"), n), n // 3 % 2, pick((2, 3), n // 6)
    gates, ways = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], 1 + both
    tokens = g.call("Transpose", to_tokens(g, x, c, n), perm=[1, 0, 2])
    weights = [g.kernel(0, ways, gates * units, c), g.kernel(0, ways, gates * units, units)]
    bias = [g.weight(ways, 2 * gates * units)] if n % 2 else []
    direction = "bidirectional" if both else pick(("forward", "reverse"), n // 12)
    more = {"linear_before_reset": n % 2} if kind == "GRU" else {}
    y, _ = g.call(kind, tokens, *weights, *bias, outputs=2, hidden_size=units, direction=direction, **more)
    y = g.reshape(g.call("Transpose", y, perm=[0, 2, 1, 3]), (0, 0, -1), n) if both else g.squeeze("Squeeze", y, 1)
    y = g.call("Transpose", y, perm=[1, 0, 2])
    return [(to_image(g, y, x, (ways * units, h, w), n), (ways * units, h, w))]

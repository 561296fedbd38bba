"""Random networks out of all operator families.

A recipe is a list of (operator, source, other, number): plain integers that are read leniently, so that every
list makes a network and shrinking a failure leaves a small one. `RandomNetwork(recipe)` draws its sources among
the tensors that exist, skips what does not fit, and prints as the program it computes.
"""

from collections.abc import Callable

import random_layers as layers
import torch
import torch.nn.functional as F
from random_layers import Line, Recipe, Shape, divisors, pick
from random_tokens import AlongTokens, OneStep, OverTokens, SharedAttention
from torch import Tensor, nn

#: An operator without a rule, which mixes channels; not among `OPERATORS`.
UNKNOWN = "unknown"


def _pool(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    if h < 2 or w < 2:
        return None
    kinds: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "max_pool": ((c, h // 2, w // 2), lambda x: F.max_pool2d(x, 2)),
        "avg_pool": ((c, h // 2, w // 2), lambda x: F.avg_pool2d(x, 2)),
        "adaptive_pool": ((c, 2, 2), lambda x: F.adaptive_avg_pool2d(x, 2)),
        "global_pool": ((c, 1, 1), lambda x: x.mean((2, 3), keepdim=True)),
    }
    name = pick(kinds, n)
    return Line(name, (), (kinds[name][0],), kinds[name][1])


def _upsample(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    if h > 8:
        return None
    mode = pick(("nearest", "bilinear"), n)
    return Line(f"upsample({mode})", (), ((c, 2 * h, 2 * w),), lambda x: F.interpolate(x, scale_factor=2.0, mode=mode))


def _parts(shape: Shape, n: int) -> Line | None:
    c, *size = shape
    if c < 4:
        return None
    h, w = size
    if n % 3 == 0:
        return Line("chunk(2)", (), ((c // 2 + c % 2, h, w), (c // 2, h, w)), lambda x: x.chunk(2, 1))
    first = 1 + n // 3 % (c - 1)
    if n % 3 == 1:
        return Line(
            f"split({first})", (), ((first, h, w), (c - first, h, w)), lambda x: x.split([first, c - first], -3)
        )
    return Line(f"slices({first})", (), ((first, h, w), (c - first, h, w)), lambda x: (x[:, :first], x[:, first:]))


def _shuffle(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    groups = pick(divisors(c), n)

    def by_view(x: Tensor) -> Tensor:
        return x.view(-1, groups, c // groups, h, w).transpose(1, 2).reshape(-1, c, h, w)

    if n % 2:
        return Line(f"channel_shuffle({groups})", (), (shape,), lambda x: F.channel_shuffle(x, groups))
    return Line(f"shuffle by view({groups})", (), (shape,), by_view)


def _pixels(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    if n % 2 and c % 4 == 0 and h <= 8:
        return Line("pixel_shuffle", (), ((c // 4, 2 * h, 2 * w),), lambda x: F.pixel_shuffle(x, 2))
    if h % 2 == 0 and w % 2 == 0 and c <= 6:
        return Line("pixel_unshuffle", (), ((4 * c, h // 2, w // 2),), lambda x: F.pixel_unshuffle(x, 2))
    return None


def _move(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    order = [(5 * i + 1) % c for i in range(c)] if c % 5 else list(range(c))[::-1]
    kinds: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "flip": (shape, lambda x: x.flip(1)),
        "index": (shape, lambda x: x[:, order]),
        "repeat_interleave": ((2 * c, h, w), lambda x: x.repeat_interleave(2, 1)),
        "repeat": ((2 * c, h, w), lambda x: x.repeat(1, 2, 1, 1)),
        "pad": ((c + 3, h, w), lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
        "roll": (shape, lambda x: x.roll((1, 1), (2, 3))),
        "fold into batch": (shape, lambda x: torch.tanh(x.reshape(-1, 1, h, w)).reshape(-1, c, h, w)),
        "permute": (shape, lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1)),
        "pad positions": ((c, h + 1, w + 1), lambda x: F.pad(x, (1, 0, 0, 1), value=0.5)),
    }
    name = pick(kinds, n)
    return Line(name, (), (kinds[name][0],), kinds[name][1])


def _over_channels(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda x: x.sum(1, keepdim=True),
        "norm": lambda x: x.norm(dim=1, keepdim=True),
        "mean": lambda x: x.mean(1, keepdim=True),
        "amax": lambda x: x.amax(-3, keepdim=True),
        "softmax": lambda x: x.softmax(1),
    }
    name = pick(kinds, n)
    return Line(f"{name} over channels", (), ((c if name == "softmax" else 1, h, w),), kinds[name])


class _Shared(nn.Module):
    """One convolution called twice, with something between."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(torch.sigmoid(self.conv(x))))


def _shared(shape: Shape, n: int) -> Line | None:
    groups = pick(divisors(shape[0]), n)
    module = _Shared(shape[0], groups)
    return Line(f"shared({groups=})", (), (shape,), module, module)


def _linear(shape: Shape, n: int) -> Line | None:
    """Over everything, over channels last, or over one dimension of the positions."""
    c, h, w = shape
    kind, out = pick(("all", "channels", "width"), n), pick(layers.WIDTHS, n // 3)
    module: nn.Module
    if kind == "all" and c * h * w <= 512:
        module = nn.Sequential(nn.Flatten(1), nn.Linear(c * h * w, out), nn.Unflatten(1, (-1, 1, 1)))
        return Line(f"linear of all(out={out})", (), ((out, 1, 1),), module, module)
    if kind == "channels":
        module = layers.ChannelsLast(nn.Linear(c, out))
        return Line(f"linear of channels(out={out})", (), ((out, h, w),), module, module)
    module = nn.Linear(w, w)
    return Line("linear of width", (), (shape,), module, module)


def _in_place(shape: Shape, n: int) -> Line | None:
    """A change in place of a part, seen by whoever reads the whole."""
    part = 1 + n // 4 % shape[0]

    def through_a_view(x: Tensor) -> Tensor:
        x = x * 1.5
        x[:, :part].sigmoid_()
        return x

    def rows(x: Tensor) -> Tensor:
        x = x * 1.5
        x[:, :, :1].add_(1.0)
        return x

    def assigned(x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        y[:, :part] = x[:, :part]
        return y

    def written(x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape)
        y[:, :part] = x[:, :part]
        return y

    change = pick((through_a_view, rows, assigned, written), n)
    return Line(f"{change.__name__}({part})", (), (shape,), change)


def _choose(shape: Shape, n: int) -> Line | None:
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "where": lambda x: torch.where(x > 0, x, x * 0.25),
        "where one": lambda x: torch.where(x > 0, x, 1.0),
        "masked_fill": lambda x: x.masked_fill(x < 0, 0.5),
        "normalize": lambda x: F.normalize(x, dim=1),
        "standardize": lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1.0),
        "einsum": lambda x: torch.einsum("nchw,ncij->nchw", x, x) * 0.01,
    }
    name = pick(kinds, n)
    return Line(name, (), (shape,), kinds[name])


def _glu(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    return None if c % 2 or c < 4 else Line("glu", (), ((c // 2, h, w),), lambda x: F.glu(x, 1))


def _tokens(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    kind = pick(("attention", "attention", "over", "along", "step"), n)
    if kind == "attention":
        heads, size = pick((2, 3, 4), n // 5), pick((2, 3), n // 15)
        kv_heads = pick([d for d in (1, 2, heads) if heads % d == 0], n // 30)
        form = pick(("fused", "by hand", "by letters"), n // 90)
        kind = f"attention({heads=}, {kv_heads=}, {size=}, {form=})"
        module: nn.Module = SharedAttention(channels, heads, kv_heads, size, form)
    elif kind == "over":
        module = OverTokens(height * width)
    else:
        module = OneStep(channels) if kind == "step" else AlongTokens(channels, pick(("LSTM", "GRU"), n // 5))
    return Line(f"tokens: {kind}", (), (shape,), module, module)


def _unknown(shape: Shape, n: int) -> Line | None:
    return Line("unknown", (), (shape,), torch.ops.zoo.blur)


_UNARY: dict[str, Callable[[Shape, int], Line | None]] = {
    "conv": layers.conv,
    "depthwise": layers.depthwise,
    "transposed": layers.transposed,
    "norm": layers.norm,
    "activation": layers.activation,
    "prelu": layers.prelu,
    "scale": layers.scale,
    "gate": layers.gate,
    "residual": layers.residual,
    "attention": layers.attention,
    "pool": _pool,
    "upsample": _upsample,
    "parts": _parts,
    "shuffle": _shuffle,
    "pixels": _pixels,
    "move": _move,
    "over channels": _over_channels,
    "shared": _shared,
    "linear": _linear,
    "in place": _in_place,
    "choose": _choose,
    "glu": _glu,
    "tokens": _tokens,
    UNKNOWN: _unknown,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "sub": torch.sub,
    "add_": lambda a, b: a.clone().add_(b),
}
#: Operators by how often they are drawn.
OPERATORS = [
    *(["conv"] * 5),
    *(["join", "cat", "norm", "activation"] * 3),
    *(["residual", "parts", "move"] * 2),
    *(name for name in _UNARY if name != UNKNOWN),
]


def _combine(name: str, shapes: list[Shape], first: int, other: int, n: int) -> Line | None:
    """Two tensors element by element (broadcast where one has size 1), or up to three side by side."""
    a = shapes[first]
    if name == "cat":
        fitting = [i for i, s in enumerate(shapes) if s[1:] == a[1:]]
        chosen = (first, *(pick(fitting, other + k) for k in range(1 + n % 2)))
        width = sum(shapes[i][0] for i in chosen)
        return None if width > 32 else Line("cat", chosen, ((width, *a[1:]),), lambda *xs: torch.cat(xs, 1))
    fitting = [
        i for i, s in enumerate(shapes) if i and i != first and all(x == y or x == 1 for x, y in zip(s, a, strict=True))
    ]
    if not fitting:
        return None
    name = pick(_BINARY, n)
    return Line(name, (first, pick(fitting, other)), (a,), _BINARY[name])


class RandomNetwork(nn.Module):
    """The network of a recipe: input (3, 8, 8); what nobody reads is pooled, joined and classified."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        shapes: list[Shape] = [(3, 8, 8)]
        self.lines: list[Line] = []
        self.layers = nn.ModuleList()
        read: set[int] = set()
        for name, source, other, number in [("conv", 0, 0, 4), *recipe]:
            first = 1 + source % (len(shapes) - 1) if len(shapes) > 1 else 0
            line = (
                _UNARY[name](shapes[first], number) if name in _UNARY else _combine(name, shapes, first, other, number)
            )
            if line is None:
                continue
            sources = line.sources or (first,)
            self.lines.append(Line(line.text, sources, line.shapes, line.call))
            if line.module is not None:
                self.layers.append(line.module)
            read.update(sources)
            shapes.extend(line.shapes)
        self.leaves = [i for i in range(1, len(shapes)) if i not in read]
        self.head = nn.Linear(sum(shapes[i][0] for i in self.leaves), 3)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for line in self.lines:
            results = line.call(*(tensors[i] for i in line.sources))
            tensors.extend(results if isinstance(results, tuple | list) else [results])
        return self.head(torch.cat([tensors[i].mean((2, 3)) for i in self.leaves], 1))

    def __repr__(self) -> str:
        text, number = ["t0 = input (3, 8, 8)"], 1
        for line in self.lines:
            names = ", ".join(f"t{number + k}" for k in range(len(line.shapes)))
            sources = ", ".join(f"t{i}" for i in line.sources)
            text.append(f"{names} = {line.text} of {sources} -> {', '.join(map(str, line.shapes))}")
            number += len(line.shapes)
        return "\n".join([*text, f"linear of the means of {', '.join(f't{i}' for i in self.leaves)}"])

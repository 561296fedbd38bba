"""Random networks out of all operator families.

A recipe is a list of (operator, source, other, number): plain integers that are read leniently, so that every
list makes a network and shrinking a failure leaves a small one. `RandomNetwork(recipe)` draws its sources among
the tensors that exist, skips what does not fit, and prints as the program it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from random_tokens import AlongTokens, OneStep, OverTokens, SharedAttention
from torch import Tensor, nn

#: An operator without a rule, which mixes channels; not among `OPERATORS`.
UNKNOWN = "unknown"

Recipe = list[tuple[str, int, int, int]]
Shape = tuple[int, int, int]

_WIDTHS = (4, 6, 8, 12)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": F.relu_,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "cos": torch.cos,
    "clamp": lambda x: x.clamp(-2.0, 2.0),
    "add_one": lambda x: x + 1.0,
    "square": lambda x: torch.tanh(x) ** 2,
}


@dataclass(frozen=True)
class Line:
    """One step of the program: the text of the call, what it reads and gives, and the call.

    A call that has parameters is the module itself and never a function around it: copies of the network would
    go on calling the original.
    """

    text: str
    sources: tuple[int, ...]
    shapes: tuple[Shape, ...]
    call: Callable[..., Any]
    module: nn.Module | None = None


def divisors(n: int, among: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)) -> list[int]:
    return [d for d in among if n % d == 0]


def _pick(options: Any, number: int) -> Any:
    options = list(options)
    return options[number % len(options)]


def _conv(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    out, kernel, stride = _pick(_WIDTHS, n), _pick((1, 3), n // 4), _pick((1, 1, 2), n // 8)
    groups = _pick([d for d in divisors(channels) if out % d == 0], n // 24)
    module = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=n % 5 != 0)
    size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    return Line(
        f"conv(out={out}, kernel={kernel}, stride={stride}, groups={groups})", (), ((out, *size),), module, module
    )


def _depthwise(shape: Shape, n: int) -> Line | None:
    channels = shape[0]
    out = channels * _pick((1, 1, 2), n)
    module = nn.Conv2d(channels, out, 3, padding=1, groups=channels, bias=n % 2 == 0)
    return Line(f"depthwise(out={out})", (), ((out, *shape[1:]),), module, module)


def _transposed(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    if height > 8:
        return None
    out = _pick(_WIDTHS, n)
    groups = _pick([d for d in divisors(channels) if out % d == 0], n // 4)
    module = nn.ConvTranspose2d(channels, out, 2, 2, groups=groups, bias=n % 2 == 0)
    return Line(f"transposed(out={out}, groups={groups})", (), ((out, 2 * height, 2 * width),), module, module)


class _ChannelsLast(nn.Module):
    """A layer that takes its channels last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def _norm(shape: Shape, n: int) -> Line | None:
    channels = shape[0]
    kind = _pick(("batch", "batch", "batch plain", "batch untracked", "group", "instance", "layer"), n)
    module: nn.Module
    if kind.startswith("batch"):
        tracked = kind != "batch untracked"
        module = nn.BatchNorm2d(channels, affine=kind != "batch plain", track_running_stats=tracked)
    elif kind == "group":
        groups = _pick(divisors(channels), n // 7)
        kind = f"group({groups})"
        module = nn.GroupNorm(groups, channels)
    elif kind == "instance":
        module = nn.InstanceNorm2d(channels, affine=n // 7 % 2 == 0)
    else:
        module = _ChannelsLast(nn.LayerNorm(channels))
    return Line(f"{kind} norm", (), (shape,), module, module)


def _activation(shape: Shape, n: int) -> Line | None:
    name = _pick(_ACTIVATIONS, n)
    return Line(name, (), (shape,), _ACTIVATIONS[name])


def _prelu(shape: Shape, n: int) -> Line | None:
    module = nn.PReLU(shape[0] if n % 2 else 1)
    return Line("prelu", (), (shape,), module, module)


class _Scale(nn.Module):
    """A bare parameter for each channel, multiplied or added."""

    def __init__(self, channels: int, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor if self.adds else x * self.factor


def _scale(shape: Shape, n: int) -> Line | None:
    module = _Scale(shape[0], n % 2 == 0)
    return Line("shift" if n % 2 == 0 else "scale", (), (shape,), module, module)


class _Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


def _gate(shape: Shape, n: int) -> Line | None:
    module = _Gate(shape[0], _pick((2, 3, 4), n))
    return Line("squeeze_excite", (), (shape,), module, module)


class _Residual(nn.Module):
    """conv, norm, activation, conv, norm around a skip; the add in place or not."""

    def __init__(self, channels: int, inner: int, depthwise: bool, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.middle = nn.Conv2d(inner, inner, 3, padding=1, groups=inner) if depthwise else nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(inner, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.middle(F.relu(self.bn1(self.conv1(x)), inplace=self.in_place))))
        if self.in_place:
            y += x
            return y
        return x + y


def _residual(shape: Shape, n: int) -> Line | None:
    inner, depthwise, in_place = _pick((4, 6), n), n // 2 % 2 == 1, n // 4 % 2 == 1
    module = _Residual(shape[0], inner, depthwise, in_place)
    return Line(f"residual(inner={inner}, {depthwise=}, {in_place=})", (), (shape,), module, module)


class _Attention(nn.Module):
    """Self-attention over positions, fused or by hand."""

    def __init__(self, channels: int, heads: int, size: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.size, self.fused = heads, size, fused
        self.qkv, self.out = nn.Linear(channels, 3 * heads * size), nn.Linear(heads * size, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, self.heads, self.size)
        q, k, v = tokens.permute(2, 0, 3, 1, 4).unbind(0)
        y = (
            F.scaled_dot_product_attention(q, k, v)
            if self.fused
            else (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        )
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(n, c, h, w)


def _attention(shape: Shape, n: int) -> Line | None:
    heads, size, fused = _pick((2, 3), n), _pick((2, 4), n // 2), n // 4 % 2 == 0
    module = _Attention(shape[0], heads, size, fused)
    return Line(f"attention({heads=}, {size=}, {fused=})", (), (shape,), module, module)


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
    name = _pick(kinds, n)
    return Line(name, (), (kinds[name][0],), kinds[name][1])


def _upsample(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    if h > 8:
        return None
    mode = _pick(("nearest", "bilinear"), n)
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
    groups = _pick(divisors(c), n)

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
    name = _pick(kinds, n)
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
    name = _pick(kinds, n)
    return Line(f"{name} over channels", (), ((c if name == "softmax" else 1, h, w),), kinds[name])


class _Shared(nn.Module):
    """One convolution called twice, with something between."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(torch.sigmoid(self.conv(x))))


def _shared(shape: Shape, n: int) -> Line | None:
    groups = _pick(divisors(shape[0]), n)
    module = _Shared(shape[0], groups)
    return Line(f"shared({groups=})", (), (shape,), module, module)


def _linear(shape: Shape, n: int) -> Line | None:
    """Over everything, over channels last, or over one dimension of the positions."""
    c, h, w = shape
    kind, out = _pick(("all", "channels", "width"), n), _pick(_WIDTHS, n // 3)
    module: nn.Module
    if kind == "all" and c * h * w <= 512:
        module = nn.Sequential(nn.Flatten(1), nn.Linear(c * h * w, out), nn.Unflatten(1, (-1, 1, 1)))
        return Line(f"linear of all(out={out})", (), ((out, 1, 1),), module, module)
    if kind == "channels":
        module = _ChannelsLast(nn.Linear(c, out))
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

    change = _pick((through_a_view, rows, assigned, written), n)
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
    name = _pick(kinds, n)
    return Line(name, (), (shape,), kinds[name])


def _glu(shape: Shape, n: int) -> Line | None:
    c, h, w = shape
    return None if c % 2 or c < 4 else Line("glu", (), ((c // 2, h, w),), lambda x: F.glu(x, 1))


def _tokens(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    kind = _pick(("attention", "attention", "over", "along", "step"), n)
    if kind == "attention":
        heads, size = _pick((2, 3, 4), n // 5), _pick((2, 3), n // 15)
        kv_heads = _pick([d for d in (1, 2, heads) if heads % d == 0], n // 30)
        form = _pick(("fused", "by hand", "by letters"), n // 90)
        kind = f"attention({heads=}, {kv_heads=}, {size=}, {form=})"
        module: nn.Module = SharedAttention(channels, heads, kv_heads, size, form)
    elif kind == "over":
        module = OverTokens(height * width)
    else:
        module = OneStep(channels) if kind == "step" else AlongTokens(channels, _pick(("LSTM", "GRU"), n // 5))
    return Line(f"tokens: {kind}", (), (shape,), module, module)


def _unknown(shape: Shape, n: int) -> Line | None:
    return Line("unknown", (), (shape,), torch.ops.zoo.blur)


_UNARY: dict[str, Callable[[Shape, int], Line | None]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "norm": _norm,
    "activation": _activation,
    "prelu": _prelu,
    "scale": _scale,
    "gate": _gate,
    "residual": _residual,
    "attention": _attention,
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
        chosen = (first, *(_pick(fitting, other + k) for k in range(1 + n % 2)))
        width = sum(shapes[i][0] for i in chosen)
        return None if width > 32 else Line("cat", chosen, ((width, *a[1:]),), lambda *xs: torch.cat(xs, 1))
    fitting = [
        i for i, s in enumerate(shapes) if i and i != first and all(x == y or x == 1 for x, y in zip(s, a, strict=True))
    ]
    if not fitting:
        return None
    name = _pick(_BINARY, n)
    return Line(name, (first, _pick(fitting, other)), (a,), _BINARY[name])


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

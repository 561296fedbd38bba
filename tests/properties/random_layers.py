"""Layers of random networks: convolutions, norms, activations, gates, blocks and attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Recipe = list[tuple[str, int, int, int]]
Shape = tuple[int, int, int]

WIDTHS = (4, 6, 8, 12)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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


def pick(options: Any, number: int) -> Any:
    options = list(options)
    return options[number % len(options)]


def conv(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    out, kernel, stride = pick(WIDTHS, n), pick((1, 3), n // 4), pick((1, 1, 2), n // 8)
    groups = pick([d for d in divisors(channels) if out % d == 0], n // 24)
    module = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=n % 5 != 0)
    size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    return Line(
        f"conv(out={out}, kernel={kernel}, stride={stride}, groups={groups})", (), ((out, *size),), module, module
    )


def depthwise(shape: Shape, n: int) -> Line | None:
    channels = shape[0]
    out = channels * pick((1, 1, 2), n)
    module = nn.Conv2d(channels, out, 3, padding=1, groups=channels, bias=n % 2 == 0)
    return Line(f"depthwise(out={out})", (), ((out, *shape[1:]),), module, module)


def transposed(shape: Shape, n: int) -> Line | None:
    channels, height, width = shape
    if height > 8:
        return None
    out = pick(WIDTHS, n)
    groups = pick([d for d in divisors(channels) if out % d == 0], n // 4)
    module = nn.ConvTranspose2d(channels, out, 2, 2, groups=groups, bias=n % 2 == 0)
    return Line(f"transposed(out={out}, groups={groups})", (), ((out, 2 * height, 2 * width),), module, module)


class ChannelsLast(nn.Module):
    """A layer that takes its channels last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


def norm(shape: Shape, n: int) -> Line | None:
    channels = shape[0]
    kind = pick(("batch", "batch", "batch plain", "batch untracked", "group", "instance", "layer"), n)
    module: nn.Module
    if kind.startswith("batch"):
        tracked = kind != "batch untracked"
        module = nn.BatchNorm2d(channels, affine=kind != "batch plain", track_running_stats=tracked)
    elif kind == "group":
        groups = pick(divisors(channels), n // 7)
        kind = f"group({groups})"
        module = nn.GroupNorm(groups, channels)
    elif kind == "instance":
        module = nn.InstanceNorm2d(channels, affine=n // 7 % 2 == 0)
    else:
        module = ChannelsLast(nn.LayerNorm(channels))
    return Line(f"{kind} norm", (), (shape,), module, module)


def activation(shape: Shape, n: int) -> Line | None:
    name = pick(ACTIVATIONS, n)
    return Line(name, (), (shape,), ACTIVATIONS[name])


def prelu(shape: Shape, n: int) -> Line | None:
    module = nn.PReLU(shape[0] if n % 2 else 1)
    return Line("prelu", (), (shape,), module, module)


class Scale(nn.Module):
    """A bare parameter for each channel, multiplied or added."""

    def __init__(self, channels: int, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor if self.adds else x * self.factor


def scale(shape: Shape, n: int) -> Line | None:
    module = Scale(shape[0], n % 2 == 0)
    return Line("shift" if n % 2 == 0 else "scale", (), (shape,), module, module)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


def gate(shape: Shape, n: int) -> Line | None:
    module = Gate(shape[0], pick((2, 3, 4), n))
    return Line("squeeze_excite", (), (shape,), module, module)


class Residual(nn.Module):
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


def residual(shape: Shape, n: int) -> Line | None:
    inner, depthwise, in_place = pick((4, 6), n), n // 2 % 2 == 1, n // 4 % 2 == 1
    module = Residual(shape[0], inner, depthwise, in_place)
    return Line(f"residual(inner={inner}, {depthwise=}, {in_place=})", (), (shape,), module, module)


class Attention(nn.Module):
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


def attention(shape: Shape, n: int) -> Line | None:
    heads, size, fused = pick((2, 3), n), pick((2, 4), n // 2), n // 4 % 2 == 0
    module = Attention(shape[0], heads, size, fused)
    return Line(f"attention({heads=}, {size=}, {fused=})", (), (shape,), module, module)

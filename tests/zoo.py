"""Tiny networks, one for each thing that channel analysis has to get right.

Each class has `example_inputs()`; `build(name)` gives one with every parameter and statistic random (batch norms
have a shift, scales differ from one), because zeros and ones hide mistakes.
"""

import functools
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, library, nn

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import CapturedModule, capture

ZOO: dict[str, type["Net"]] = {}


class Net(nn.Module):
    """A network that knows its inputs; subclasses register themselves under their name."""

    shape: tuple[int, ...] = (2, 3, 8, 8)

    def __init_subclass__(cls) -> None:
        ZOO[cls.__name__] = cls

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Inputs in the model's own precision."""
        dtype = next(self.parameters()).dtype
        generator = torch.Generator().manual_seed(batch)
        return (torch.randn((batch, *self.shape[1:]), generator=generator, dtype=torch.float64).to(dtype),)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill parameters and floating buffers with numbers that make every term count; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            owned = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in owned:
                if not tensor.is_floating_point():
                    continue
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                if "var" in name or (tensor.dim() == 1 and name == "weight"):
                    noise = 0.5 + noise.abs()
                elif tensor.dim() > 1:
                    noise = noise / math.sqrt(max(1, tensor[0].numel()))
                tensor.copy_(noise)
    return model


def build(name: str, dtype: torch.dtype = torch.float64) -> Net:
    """The network of that name, random, in inference mode."""
    torch.manual_seed(0)
    model = ZOO[name]()
    randomize(model)
    return model.to(dtype).eval()


@functools.cache
def analyzed(name: str) -> tuple["Net", CapturedModule, ChannelGraph]:
    """A network in double precision with its capture and its groups, made once: not to be changed."""
    model = build(name)
    captured = capture(model, model.example_inputs())
    return model, captured, analyze(captured)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


def classifier(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# -- convolutional backbones ------------------------------------------------------------------------


class Plain(Net):
    """Conv, BN, ReLU in a row, then a VGG-style flatten of C*H*W into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_bn(3, 6), nn.ReLU(inplace=True), nn.MaxPool2d(2), *conv_bn(6, 8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(8 * 2 * 2, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(torch.flatten(x, 1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, pad_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.grows = inputs != outputs
        self.pad_shortcut = pad_shortcut
        self.extra = outputs - inputs
        if self.grows and not pad_shortcut:
            self.shortcut = conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.grows:
            if self.pad_shortcut:
                before = self.extra // 2
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before))
            else:
                x = self.shortcut(x)
        y += x
        return F.relu(y)


class Residual(Net):
    """Two stages with a projection shortcut."""

    def __init__(self, pad_shortcut: bool = False) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.layer1 = nn.Sequential(*(BasicBlock(6, 6, 1, pad_shortcut) for _ in range(2)))
        self.layer2 = nn.Sequential(BasicBlock(6, 10, 2, pad_shortcut), BasicBlock(10, 10, 1, pad_shortcut))
        self.head = classifier(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(F.relu(self.stem(x)))))


class ResidualPad(Residual):
    """The parameterless shortcut of CIFAR ResNets: strided slicing and channels of zeros."""

    def __init__(self) -> None:
        super().__init__(pad_shortcut=True)


class InvertedResidual(Net):
    """MobileNetV2: expand, depthwise, project, with and without the residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.expand = conv_bn(4, 12, 1)
        self.depthwise = conv_bn(12, 12, 3, groups=12)
        self.project = conv_bn(12, 4, 1)
        self.down = nn.Sequential(
            *conv_bn(4, 8, 1), nn.ReLU6(), *conv_bn(8, 8, 3, 2, groups=8), nn.ReLU6(), *conv_bn(8, 6, 1)
        )
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.head(self.down(x))


class DepthwiseMultiplier(Net):
    """Depthwise with two and three outputs for each input channel, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.again = nn.Conv2d(8, 24, 3, padding=1, groups=8)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.again(F.relu(self.depthwise(F.relu(self.stem(x)))))))


class GroupedFew(Net):
    """Fewer groups than channels in one: the same position of every group goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.grouped = conv_bn(8, 12, 3, groups=2)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.stem(x)))))


class GroupedMany(Net):
    """More groups than channels in one (ResNeXt): whole groups go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.grouped = conv_bn(12, 18, 3, groups=6)
        self.head = nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.softplus(self.grouped(F.relu(self.stem(x)))))


class GroupedInput(Net):
    """A grouped convolution right on the images: its inputs cannot go."""

    shape = (2, 4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.grouped(x), self.depthwise(x)], 1)))


class Transposed(Net):
    """Transposed convolutions: dense, with few groups, with many, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.dense = nn.ConvTranspose2d(8, 12, 2, 2)
        self.few = nn.ConvTranspose2d(12, 8, 3, padding=1, groups=2)
        self.many = nn.ConvTranspose2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.few(F.relu(self.dense(F.relu(self.stem(x))))))
        return self.head(torch.sigmoid(self.depthwise(F.relu(self.many(x)))))


class Conv1d(Net):
    shape = (2, 3, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv1d(6, 8, 3, padding="same", dilation=2)
        self.up = nn.ConvTranspose1d(8, 6, 2, 2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool1d(F.leaky_relu(self.conv2(x)), 2)
        return self.head(F.avg_pool1d(self.up(x), 2).mean(-1))


class Conv3d(Net):
    shape = (2, 2, 4, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(6)
        self.conv2 = nn.Conv3d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose3d(6, 4, 2, 2)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.elu(self.bn1(self.conv1(x))), 2)
        x = F.interpolate(self.up(F.silu(self.conv2(x))), scale_factor=2.0, mode="trilinear")
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


# -- gates, joins and splits --------------------------------------------------------------------------


class SqueezeExcite(Net):
    """A gate by convolutions, one by linear layers and one with a hard sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.body = conv_bn(8, 6)
        self.fc1 = nn.Linear(6, 3)
        self.fc2 = nn.Linear(3, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        x = F.hardswish(self.body(x * gate))
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return self.head(gate[:, :, None, None] * x)


class EcaGate(Net):
    """A gate whose convolution runs over the channels: they are positions there and cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.body = conv_bn(8, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = self.eca(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        return self.head(F.relu(self.body(x * gate)))


class SpatialGate(Net):
    """CBAM: mean and maximum over channels, which are statistics of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)
        self.body = conv_bn(8, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = x * torch.sigmoid(self.gate(pooled))
        return self.head(F.relu(self.body(x)))


class Dense(Net):
    """A dense block: batch norm over what was joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1, bias=False) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 6, 1), nn.AvgPool2d(2))
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(self.transition(torch.cat(features, 1)))


class Csp(Net):
    """YOLO's C2f: split in two, a chain of residual bottlenecks on one half, all parts joined."""

    def __init__(self, chunks: bool = True) -> None:
        super().__init__()
        self.chunks = chunks
        self.cv1 = conv_bn(3, 8, 1)
        self.blocks = nn.ModuleList(nn.Sequential(*conv_bn(4, 6), nn.SiLU(), *conv_bn(6, 4)) for _ in range(2))
        self.cv2 = conv_bn(16, 6, 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.cv1(x))
        parts = list(x.chunk(2, 1) if self.chunks else x.split([4, 4], dim=-3))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.head(F.silu(self.cv2(torch.cat(parts, 1))))


class CspSizes(Csp):
    """The same with a split by sizes along a negative dimension."""

    def __init__(self) -> None:
        super().__init__(chunks=False)


class SliceHalves(Net):
    """Halves by slicing, and a narrow middle part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left = conv_bn(4, 4)
        self.middle = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [self.left(x[:, :4]), x[:, 4:], self.middle(x.narrow(1, 2, 4))]
        return self.head(torch.tanh(torch.cat(parts, dim=-3)))


class PooledHalves(Net):
    """Halves that differ in nothing but how they are pooled: neither may be emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.stem(x)).chunk(2, 1)
        return self.head(torch.cat([F.max_pool2d(a, 2), F.avg_pool2d(b, 2)], 1))


class ShuffleView(Net):
    """ShuffleNetV2: split, a branch, join, and a channel shuffle by view, transpose and view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branch1 = nn.Sequential(*conv_bn(4, 4, 1), nn.ReLU(), *conv_bn(4, 4, 3, groups=4), *conv_bn(4, 4, 1))
        self.branch2 = nn.Sequential(*conv_bn(4, 6, 1), nn.ReLU(), *conv_bn(6, 4, 1))
        self.head = classifier(8)

    def shuffle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for branch in (self.branch1, self.branch2):
            keep, work = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat([keep, F.relu(branch(work))], 1))
        return self.head(x)


class ShuffleBatch(Net):
    """The shuffle of the original ShuffleNetV2, which folds channels into the batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branch = nn.Sequential(*conv_bn(4, 6, 1), nn.ReLU(), *conv_bn(6, 4, 1), nn.ReLU())
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.size()
        x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2)
        x = x.reshape(2, -1, c // 2, h, w)
        return self.head(torch.cat((x[0], self.branch(x[1])), 1))


class ShuffleModule(Net):
    """Grouped convolutions with nn.ChannelShuffle between them (ShuffleNetV1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.first = conv_bn(12, 12, 1, groups=3)
        self.shuffle = nn.ChannelShuffle(3)
        self.depthwise = conv_bn(12, 12, 3, groups=12)
        self.second = conv_bn(12, 12, 1, groups=3)
        self.head = classifier(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.shuffle(F.relu(self.first(x)))
        return self.head(F.relu(x + self.second(self.depthwise(y))))


class PixelShuffle(Net):
    """Sub-pixel upsampling and its inverse, with channels that go on behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.down = nn.PixelUnshuffle(2)
        self.body = nn.Conv2d(16, 24, 3, padding=1)
        self.up = nn.PixelShuffle(2)
        self.tail = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.up(F.relu(self.body(self.down(F.relu(self.stem(x)))))))


class UNet(Net):
    """Encoder and decoder with skip connections, resampling and a strided transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.dec2, self.dec1 = conv_bn(12, 5), conv_bn(9, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = F.relu(self.enc1(x))
        e2 = F.relu(self.enc2(F.max_pool2d(e1, 2)))
        e3 = F.relu(self.enc3(F.avg_pool2d(e2, 2)))
        d2 = F.relu(self.dec2(torch.cat([self.up(e3), e2], 1)))
        d2 = F.interpolate(d2, size=e1.shape[-2:], mode="bilinear", align_corners=False)
        d1 = F.relu(self.dec1(torch.cat((d2, e1), 1)))
        return self.head(F.interpolate(d1, scale_factor=2.0, mode="nearest"))


class CatConstant(Net):
    """Coordinates, an input and a literal joined to channels: only the channels may go."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 8).repeat(1, 1, 8, 1))
        self.stem = conv_bn(3, 6)
        self.head = nn.Conv2d(6 + 1 + 3 + 2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        fill = x.new_ones(x.shape[0], 2, 8, 8)
        return self.head(torch.cat([self.grid.expand(x.shape[0], -1, -1, -1), y, x, fill], 1))


class StackMaxout(Net):
    """Branches stacked along a new dimension and reduced over it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 6), conv_bn(3, 6)
        self.maxout = nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.a(x), self.b(x)], dim=1).sum(1)
        x = self.maxout(F.relu(x))
        return self.head(x.unflatten(1, (4, 2)).amax(2))


class SplitAttention(Net):
    """ResNeSt: softmax over the two halves of every channel, which go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 16, groups=2)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(F.relu(self.body(F.relu(self.stem(x)))), 8, 1)
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(a + b, 1))))
        gate = gate.view(x.shape[0], 1, 2, -1).transpose(1, 2).softmax(1).reshape(x.shape[0], -1, 1, 1)
        first, second = torch.split(gate, 8, 1)
        return self.head(first * a + second * b)


class Hierarchical(Net):
    """Res2Net: parts of a split, each added to what the part before it became."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12, 1)
        self.convs = nn.ModuleList(conv_bn(3, 3) for _ in range(3))
        self.body = conv_bn(12, 6, 1)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.stem(x)), 3, 1)
        results = [F.relu(self.convs[0](parts[0]))]
        for part, conv in zip(parts[1:3], self.convs[1:], strict=True):
            results.append(F.relu(conv(results[-1] + part)))
        return self.head(F.relu(self.body(torch.cat([*results, parts[3]], 1))))


class GatedUnit(Net):
    """A product of two halves (NAFNet's simple gate) and F.glu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(self.stem(x), 2, dim=-3)
        return self.head(F.glu(self.body(a * b), dim=1))


# -- parameters in unusual places ---------------------------------------------------------------------


class PReLU(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 6, 3, padding=1), nn.PReLU(6)
        self.conv2, self.act2 = nn.Conv2d(6, 8, 3, padding=1), nn.PReLU()
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.conv2(self.act1(self.conv1(x)))))


class SharedModule(Net):
    """One convolution called twice: its inputs and outputs are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.shared = conv_bn(6, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(torch.sigmoid(self.shared(F.relu(self.shared(x)))))


class TiedWeights(Net):
    """Two layers with one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(torch.sigmoid(self.second(x)) + F.relu(self.first(x)))


class TiedAutoencoder(Net):
    """A decoder that uses the encoder's weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.zeros(8, 6, 3, 3))
        self.tail = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        code = torch.sigmoid(F.conv2d(x, self.weight, padding=1))
        return self.tail(F.conv_transpose2d(code, self.weight, padding=1))


class RawScale(Net):
    """Scales, biases and layer scale as bare parameters of several ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.gain = nn.Parameter(torch.ones(()))
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(6))
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.conv1(x) * self.scale + self.bias) * self.gain
        y = self.conv2(x) * self.gamma.view(1, -1, 1, 1)
        return self.head(x + y)


class Functional(Net):
    """Convolution and linear by functions, with parameters in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([torch.zeros(6, 3, 3, 3), torch.zeros(8, 6, 1, 1)])
        self.more = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(8)), "out": nn.Parameter(torch.zeros(5, 8))})
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x - self.mean, self.kernels[0], padding=1)
        x = F.conv2d(F.gelu(x), self.kernels[1], self.more["bias"])
        return F.linear(torch.sigmoid(x).amax((2, 3)), self.more["out"])


class OneOutput(Net):
    """Layers with a single output channel: nothing of theirs can go, and no depthwise convolution is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Conv2d(6, 1, 3, padding=1)
        self.wide = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.wide(self.one(x))).mean((-2, -1)))


class Buffers(Net):
    """A per-channel buffer, a buffer that is not saved, an index buffer and a literal in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.register_buffer("scale", torch.ones(6, 1, 1))
        self.register_buffer("offset", torch.zeros(1, 6, 1, 1), persistent=False)
        self.register_buffer("order", torch.tensor([5, 0, 3, 1, 4, 2]))
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x)) * self.scale + self.offset
        x = F.relu(self.body(x.index_select(1, self.order)))
        return self.head(x * torch.tensor(0.5, dtype=x.dtype))


class IndexedChannels(Net):
    """Channels in another order by advanced indexing, flip and roll."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = torch.sigmoid(self.body(x[:, [3, 1, 0, 2, 5, 4]]))
        return self.head(torch.cat([x.flip(1), x.roll(2, 1)], 1))


class WeightNorm(Net):
    """Weights computed in forward from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.conv1 = norm(nn.Conv2d(3, 6, 3, padding=1))
        self.conv2 = norm(nn.Conv2d(6, 8, 3, padding=1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class OldWeightNorm(Net):
    """The same by the older hooks, which leave a weight with a history behind; and spectral norm in both forms."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.conv1 = nn.utils.weight_norm(nn.Conv2d(3, 6, 3, padding=1))
            self.conv2 = nn.utils.spectral_norm(nn.Conv2d(6, 8, 3, padding=1))
        self.conv3 = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 7, 3, padding=1))
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


class WeightStandardized(Net):
    """Weights brought to mean zero over their inputs in forward: input channels are statistics there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.zeros(8, 6, 3, 3))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self.head(F.relu(F.conv2d(F.relu(self.stem(x)), weight, padding=1)))


# -- normalizations and statistics --------------------------------------------------------------------


class SigmoidBias(Net):
    """No batch norm: biases and activations that are not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.conv2(torch.sigmoid(self.conv1(x))))
        return self.head(torch.exp(-F.adaptive_max_pool2d(torch.cos(self.conv3(x)), 4)).flatten(1))


class GroupNorms(Net):
    """Group norm with one group, with few, with many, and with one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.one = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(1, 6)
        self.conv2, self.few = nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.conv3, self.many = nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(6, 12)
        self.conv4, self.each = nn.Conv2d(12, 6, 3, padding=1), nn.GroupNorm(6, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.conv1(x)))
        x = F.relu(self.few(self.conv2(x)))
        x = torch.sigmoid(self.many(self.conv3(x)))
        return self.head(F.relu(self.each(self.conv4(x))))


class InstanceNorms(Net):
    """Instance norm: plain, affine and with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.plain = nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6)
        self.conv2, self.affine = nn.Conv2d(6, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.conv3 = nn.Conv2d(8, 6, 3, padding=1)
        self.tracked = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.affine(self.conv2(F.relu(self.plain(self.conv1(x))))))
        return self.head(torch.sigmoid(self.tracked(self.conv3(x))))


class BatchNorms(Net):
    """Batch norm before the convolution, without affine parameters, and without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.second = nn.BatchNorm2d(6, track_running_stats=False)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.third = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(self.conv1(x)))))
        return self.head(self.third(F.relu(self.conv2(x))))


class ConvNext(Net):
    """LayerNorm over channels last, a depthwise convolution, an inverted bottleneck of linear layers, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.ones(6))
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class Normalized(Net):
    """Local statistics by hand: over positions (exact) and over channels (not)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(x.var((2, 3), keepdim=True) + 1e-3)
        x = F.relu(self.conv2(F.relu(x))).amax((2, 3))
        return self.head(F.normalize(x, dim=1))


class SumOverChannels(Net):
    """Plain sums over channels: exact where the channels are zero (first), not where they are not (second)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.conv1(x)).sum(1, keepdim=True)
        second = torch.sigmoid(self.conv2(x)).sum(-3, keepdim=True)
        return self.head(torch.cat([first, second], 1))


# -- not only convolutions ----------------------------------------------------------------------------


class Mlp(Net):
    shape = (2, 7)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(7, 8), nn.BatchNorm1d(8)
        self.fc2, self.fc3 = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.fc1(x)))
        return self.fc3(x + F.relu(self.fc2(x)))


class Mixer(Net):
    """MLP-Mixer: linear layers over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.token1, self.token2 = nn.Linear(16, 10), nn.Linear(10, 16)
        self.channel1, self.channel2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2)
        x = (x + self.token2(F.gelu(self.token1(x)))).transpose(1, 2)
        x = x + self.channel2(F.gelu(self.channel1(x)))
        return self.head(x.mean(1))


class Attention(Net):
    """Self-attention by hand: heads, softmax over keys, batched products."""

    sdpa = False

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 4**-0.5).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(n, tokens, dim))
        return self.head(x.mean(1))


class AttentionSdpa(Attention):
    """The same with the fused operator."""

    sdpa = True


class AttentionSeparate(Net):
    """Query, key and value by their own layers, of different sizes."""

    shape = (2, 5, 6)

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12)
        self.out = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(x.shape[0], 5, 2, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class LinearAttention(Net):
    """EfficientViT: products without softmax, normalized by an extra row of ones and a division."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.qkv, self.project = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 2, 4, h * w).unbind(1)
        q, k, v = F.relu(q), F.relu(k), F.pad(v, (0, 0, 0, 1), value=1.0)
        y = (v @ k.transpose(-1, -2)) @ q
        y = y[:, :, :-1] / (y[:, :, -1:] + 1e-3)
        return self.head(x + self.project(y.reshape(n, c, h, w)))


class WindowAttention(Net):
    """Swin: windows, a table of relative positions picked by an index buffer, and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.zeros(9, 2))
        self.register_buffer("relative", torch.arange(16).reshape(4, 4) % 9)
        self.merge, self.head = nn.Linear(32, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = self.norm(x).view(n, 2, 2, 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.relative.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) * 0.5 + bias[None]).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        x = x + self.project(y).view(n, 2, 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(self.merge(x).mean((1, 2)))


class MultiHead(Net):
    """nn.MultiheadAttention, with a layer norm before it."""

    shape = (2, 5, 8)

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.fc2(F.gelu(self.fc1(x)))


class NonLocal(Net):
    """A non-local block: a product over positions, bmm and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.theta, self.phi, self.g = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.out = nn.Conv2d(4, 6, 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        weights = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
        y = torch.bmm(weights, g.transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, 8, 8)
        return self.head(x + self.out(y))


class Tokens(Net):
    """An embedding table whose columns are channels."""

    shape = (2, 5)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 4)

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        return (torch.arange(batch * 5).reshape(batch, 5) % 11,)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.table(x))).mean(1))


# -- interfaces ----------------------------------------------------------------------------------------


class TwoOutputs(Net):
    """A classifier and an auxiliary map, one of which is a feature that must stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), conv_bn(6, 8)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        y = F.relu(self.body(x))
        return self.head(y), y


class DictOutput(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), conv_bn(6, 8)
        self.head, self.aux = nn.Conv2d(8, 5, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        return {"out": self.head(F.relu(self.body(x))), "aux": self.aux(x)}


class TwoInputs(Net):
    """An image and a vector that conditions it (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.film = nn.Linear(4, 12)
        self.head = nn.Conv2d(6, 5, 1)

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        (x,) = super().example_inputs(batch)
        return x, x[:, 0, 0, :4] + 1

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.film(condition).unsqueeze(-1).unsqueeze(-1).chunk(2, dim=1)
        return self.head(F.relu(self.stem(x) * (1 + gain) + bias))


class Pyramid(Net):
    """A feature pyramid: lateral layers of one width, and a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_bn(3, 4), conv_bn(4, 6, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1)])
        self.out = nn.ModuleList(nn.Conv2d(5, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        a = F.relu(self.c1(x))
        b = F.relu(self.c2(a))
        top = self.lateral[1](b)
        low = self.lateral[0](a) + F.interpolate(top, size=a.shape[-2:], mode="nearest")
        return [conv(y) for conv, y in zip(self.out, (low, top), strict=True)]


class Conditional(Net):
    """CondConv: kernels mixed for every sample, applied as one grouped convolution over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.route, self.experts = nn.Linear(6, 3), nn.Parameter(torch.zeros(3, 8 * 6 * 9))
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.shape
        kernels = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.experts).view(n * 8, c, 3, 3)
        return self.head(F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, 8, h, w))


@library.custom_op("zoo::blur", mutates_args=())
def blur(x: Tensor) -> Tensor:
    return 0.5 * (x + x.flip(1))


@blur.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(Net):
    """An operator of somebody else's, which mixes channels: what it touches is frozen, the rest is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.ops.zoo.blur(F.relu(self.body(x)))
        return self.head(F.relu(self.last(x)))


class Fourier(Net):
    """Complex numbers: a Fourier layer between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), conv_bn(6, 6)
        self.head = classifier(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.body(torch.fft.rfft2(x).abs()[..., :5])))


class InPlace(Net):
    """Operators in place, one of them through a view that is not used afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.relu_()
        x[:, :4].sigmoid_()
        x.mul_(2).add_(0.5)
        y = self.body(x)
        y.clamp_(min=0.0)
        z = self.head(y)
        z += y.sum(1, keepdim=True)
        return z


class InPlaceNonZero(Net):
    """A sum over channels that became non-zero in place, behind the back of the operator that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(1, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :, :4].sigmoid_()
        return self.head(x.sum(1, keepdim=True))


class Assigned(Net):
    """Channels written into a tensor of zeros slice by slice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 8, 8, 8)
        y[:, :4] = F.relu(self.left(x))
        y[:, 4:] = torch.sigmoid(self.right(x))
        return self.head(F.relu(self.body(y)))


class Literal(Net):
    """A number for each channel written in forward: no plan can reach it, so the channels it meets stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype).view(1, -1, 1, 1)
        return self.head(F.relu(self.body(torch.sigmoid(self.stem(x)) * scale)))


class Dropouts(Net):
    """Every kind of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), conv_bn(6, 8)
        self.drops = nn.ModuleList([nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.5), nn.RReLU()])
        self.alpha, self.feature_alpha = nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for drop in self.drops:
            x = drop(x)
        return self.head(self.feature_alpha(self.alpha(self.body(x))))


class Windows(Net):
    """Window partition of Swin and back again: positions move, channels follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(x, (-2, -2), (1, 2)).view(n, 2, 4, 2, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        y = torch.sigmoid(self.fc1(y))
        y = self.fc2(y).view(n, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        return self.head((x + y).permute(0, 3, 1, 2))


class Unfold(Net):
    """Patches by Tensor.unfold and a Focus stem of strided slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(16, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        return self.head(F.relu(self.body(x)).unfold(2, 2, 2).mean(-1))


class Recurrent(Net):
    """A convolution before two layers of an LSTM in both directions with projections, of which every result is used."""

    shape = (2, 3, 9)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 6, 3)
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=5, batch_first=True)
        self.head, self.last, self.cell = nn.Linear(10, 4), nn.Linear(5, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(torch.sigmoid(self.stem(x)).transpose(1, 2))
        return self.head(y), self.last(h.sum(0)), self.cell(c[-1])


class RecurrentState(Net):
    """A GRU that starts from what a linear layer makes of the input, and a plain one without biases after it."""

    shape = (2, 9, 4)

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 6)
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.rnn = nn.RNN(6, 7, batch_first=True, bias=False, nonlinearity="relu")
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x, torch.sigmoid(self.start(x.mean(1)))[None])
        y, _ = self.rnn(y)
        return self.head(y[:, -1])


class Sampled(Net):
    """Positions that are sampled, picked, sorted and put back by what other channels say: channels pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.where = nn.Conv2d(3, 2, 1)
        self.body, self.head = nn.Conv2d(6, 7, 1), nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.stem(x))
        y = F.grid_sample(y, torch.tanh(self.where(x)).permute(0, 2, 3, 1), align_corners=False)
        y = y.take_along_dim(y.argsort(-1, descending=True), -1) + y.kthvalue(2, dim=-1, keepdim=True).values
        y = F.relu(self.body(y)).diff(dim=-1)
        y = torch.zeros_like(y).scatter_add(2, y.argsort(2), y).gather(2, y.argsort(2))
        return self.head(y.index_add(3, torch.tensor([0, 1]), y[..., 2:4]))


class Columns(Net):
    """Windows written out as rows of channels and summed back (im2col and col2im)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Conv1d(36, 54, 1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.unfold(torch.sigmoid(self.stem(x)), 3, padding=1)
        return self.head(F.relu(F.fold(torch.sigmoid(self.mix(rows)), x.shape[-2:], 3, padding=1)))


class Spectrum(Net):
    """Filters in the frequency domain, and pairs taken for complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(6, 8, 5, 2))
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(torch.sigmoid(self.stem(x))) * torch.view_as_complex(self.filter)
        y = torch.fft.irfft2(y, s=x.shape[-2:])
        y = torch.view_as_complex(y.unflatten(-1, (4, 2)).contiguous()) * 1j
        return self.head(torch.view_as_real(y).flatten(-2))


class Bags(Net):
    """An embedding bag before linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(11, 6, mode="sum")
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 5)

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Indices of words."""
        return (torch.randint(0, 11, (batch, 7), generator=torch.Generator().manual_seed(batch)),)

    def forward(self, words: Tensor) -> Tensor:
        return self.fc2(torch.sigmoid(self.fc1(self.table(words))))


def random_removal(
    graph: ChannelGraph, rng: np.random.Generator, share: float = 0.4, *, inexact: bool = False, branches: bool = False
) -> NDArray[np.bool_]:
    """Groups to remove at random, (G,), such that a plan can be made of them.

    Args:
        graph: channel graph.
        rng: source of randomness.
        share: of the groups, about.
        inexact: take any group, not only exact ones.
        branches: also remove whole sets that have a branch around them.
    """
    removed = rng.random(graph.n_groups) < share
    if not inexact:
        removed &= graph.exact
    emptied: set[int] = set()
    for group_set in graph.sets:
        groups = group_set.groups
        if branches and group_set.bypassed and rng.random() < 0.5 and (inexact or graph.exact[groups].all()):
            removed[groups] = True
        if removed[groups].all():
            if branches and graph.flow.fates(frozenset({*emptied, group_set.index})) is not None:
                emptied.add(group_set.index)
            else:
                removed[rng.choice(groups)] = False
    return removed


import zoo_tokens  # noqa: E402, F401 - registers its networks after those above

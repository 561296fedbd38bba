"""Networks of the zoo: gates, joins and splits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier, conv_bn


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

"""MobileNetV2.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, table 2 and section 4. Parameter names are those of torchvision's mobilenet_v2.
"""

from typing import Literal

from torch import Tensor, nn

# (expansion factor, output channels, blocks, stride of the first block): table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter depthwise with 3x3, project with 1x1; a shortcut where the shape allows one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_convolution(in_channels, hidden, kernel_size=1))
        layers += [
            _convolution(hidden, hidden, kernel_size=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, added to x where the block keeps the shape."""
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with a width multiplier.

    Args:
        num_classes: width of the last layer.
        width: multiplier of all channel numbers, which are rounded to multiples of 8; the last
            convolution keeps at least 1280 channels, as in the paper.
        strides: "imagenet" halves the resolution five times, as in the paper; "cifar" leaves the stem
            and the second stage at stride 1, so that a 32x32 image ends as 4x4.
        in_channels: 3 for color, 1 for gray-scale images.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: float = 1.0,
        strides: Literal["cifar", "imagenet"] = "cifar",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if strides not in ("cifar", "imagenet"):
            raise ValueError(f'strides is {strides!r}; it is "cifar" or "imagenet"')
        if width <= 0:
            raise ValueError(f"width is {width}; it is a positive multiplier")
        small = strides == "cifar"
        channels = _round_to_8(32 * width)
        layers: list[nn.Module] = [_convolution(in_channels, channels, kernel_size=3, stride=1 if small else 2)]
        for stage, (expansion, base, blocks, first_stride) in enumerate(_STAGES):
            out_channels = _round_to_8(base * width)
            for block in range(blocks):
                stride = first_stride if block == 0 and not (small and stage == 1) else 1
                layers.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        last = _round_to_8(1280 * max(1.0, width))
        layers.append(_convolution(channels, last, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Shapes: x: (batch, in_channels, height, width); returns (batch, num_classes).
        """
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _convolution(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def _round_to_8(channels: float) -> int:
    """Round to a multiple of 8, never below 90 % of the number given."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)


def mobilenet_v2(
    num_classes: int = 10,
    width: float = 1.0,
    strides: Literal["cifar", "imagenet"] = "cifar",
    in_channels: int = 3,
) -> MobileNetV2:
    """Return MobileNetV2.

    At 32x32 with CIFAR strides and 10 classes: 88.0 M MACs, 2.24 M parameters. At 224x224 with
    ImageNet strides and 1000 classes: 300.8 M MACs, 3.50 M parameters.
    """
    return MobileNetV2(num_classes, width, strides, in_channels)

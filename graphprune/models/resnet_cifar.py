"""ResNets for 32x32 images.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
MACs are those of convolutions and the linear layer for one 32x32 image.

A network of depth 6n+2 has three stages of n basic blocks, of 16, 32 and 64 channels; the first block of
the second and third stage halves the resolution. Shortcuts have no parameters (option A): every second
row and column is taken, and channels of zeros are added.

Parameter names: conv1, bn1, layer{1,2,3}.{0..n-1}.{conv1,bn1,conv2,bn2}, linear.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut that changes shape: subsample by 2, pad channels with zeros.

    A quarter of the new width goes before and a quarter after, since the width doubles.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.pad = out_channels // 4

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (batch, channels, h, w); returns (batch, 2 channels, h/2, w/2), sides rounded up."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else OptionAShortcut(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch(x) + shortcut(x))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of depth 6n+2.

    Args:
        depth: 20, 32, 44, 56, 110, or any other 6n+2.
        num_classes: width of the last layer.
        in_channels: 3 for color, 1 for gray-scale images.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n+2 layers (20, 32, 44, 56, 110)")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Shapes: x: (batch, in_channels, height, width); returns (batch, num_classes).
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet20: 40.6 M MACs, 0.27 M parameters (He et al. 2016, table 6)."""
    return CifarResNet(20, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet32: 68.9 M MACs, 0.46 M parameters (He et al. 2016, table 6)."""
    return CifarResNet(32, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet44: 97.2 M MACs, 0.66 M parameters (He et al. 2016, table 6)."""
    return CifarResNet(44, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet56: 125.5 M MACs, 0.85 M parameters (He et al. 2016, table 6)."""
    return CifarResNet(56, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet110: 252.9 M MACs, 1.73 M parameters (He et al. 2016, table 6)."""
    return CifarResNet(110, num_classes, in_channels)

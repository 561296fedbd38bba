"""Networks of the zoo: convolutional backbones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier, conv_bn


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

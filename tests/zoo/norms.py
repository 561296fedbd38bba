"""Networks of the zoo: normalizations and statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier


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

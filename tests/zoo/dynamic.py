"""Networks of the zoo: slopes and kernels that the network computes for itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier, conv_bn


class DynamicRelu(Net):
    """The largest of k lines for each channel, whose 2k numbers a small network gives: times a buffer of 2k numbers."""

    pieces = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), conv_bn(6, 8)
        self.squeeze, self.lines = nn.Linear(6, 5), nn.Linear(5, 2 * self.pieces * 6)
        self.register_buffer("spread", torch.ones(2 * self.pieces))
        self.register_buffer("centre", torch.ones(2 * self.pieces))
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = torch.tanh(self.lines(F.relu(self.squeeze(x.mean((2, 3))))))
        found = found.view(-1, 6, 1, 1, 2 * self.pieces) * self.spread + self.centre
        x = (x.unsqueeze(-1) * found[..., : self.pieces] + found[..., self.pieces :]).amax(-1)
        return self.head(F.relu(self.body(x)))

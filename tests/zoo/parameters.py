"""Networks of the zoo: parameters in unusual places."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier, conv_bn


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

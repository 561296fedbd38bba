"""Networks of the zoo: inputs, outputs, control flow, and operators of somebody else's."""

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from zoo.base import Net, classifier, conv_bn


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


class Masks(Net):
    """Channels that a buffer switches off, and a filter for all of them that is repeated in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.on: Tensor
        self.blur: Tensor
        self.register_buffer("on", torch.tensor([True, False, True, True, False, True]))
        self.register_buffer("blur", torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.where(self.on.view(1, -1, 1, 1), x, torch.zeros_like(x))
        x = F.relu(self.body(F.conv2d(x, self.blur.expand(6, 1, 3, 3), groups=6)))
        return self.head(F.conv2d(x, self.blur.repeat(8, 1, 1, 1), stride=2, groups=8))


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

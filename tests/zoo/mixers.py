"""Networks of the zoo: attention and other layers that are no convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net, classifier, conv_bn


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

"""Networks of the zoo that work on tokens: attention in the forms that are met, einsum, recurrent cells, composites."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import Net


class Tokenized(Net):
    """A patch embedding before, a linear layer on the mean after: what is between is the subclass's."""

    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, 2)
        self.head = nn.Linear(self.width, 5)
        self.make()

    def make(self) -> None:
        """Layers of the subclass."""

    def mix(self, x: Tensor) -> Tensor:
        """(N, 16, 12) to (N, 16, width)."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class GroupedQueries(Tokenized):
    """Two queries' heads for each of the keys and values, which are repeated by hand."""

    width = 16

    def make(self) -> None:
        self.query, self.pair = nn.Linear(12, 16), nn.Linear(12, 16)

    def mix(self, x: Tensor) -> Tensor:
        q = self.query(x).view(-1, 16, 4, 4).transpose(1, 2)
        k, v = (part.transpose(1, 2) for part in self.pair(x).view(-1, 16, 2, 2, 4).unbind(2))
        return self.attend(q, k, v).transpose(1, 2).reshape(-1, 16, 16)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


class GroupedQueriesFused(GroupedQueries):
    """The same, repeated by the operator."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class SharedKeys(Tokenized):
    """One head of keys and values for all queries."""

    width = 16

    def make(self) -> None:
        self.query, self.pair = nn.Linear(12, 16), nn.Linear(12, 8)

    def mix(self, x: Tensor) -> Tensor:
        q = self.query(x).view(-1, 16, 4, 4).transpose(1, 2)
        k, v = self.pair(x).unsqueeze(1).split(4, -1)
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, 16)


class TalkingHeads(Tokenized):
    """Linear layers over the heads before and after the softmax: of the first, the outputs may go."""

    def make(self) -> None:
        self.qkv, self.before, self.after = nn.Linear(12, 36), nn.Linear(3, 6), nn.Linear(6, 3)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        scores = self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (scores @ v).transpose(1, 2).reshape(-1, 16, 12)


class NormalizedQueries(Tokenized):
    """Queries and keys normalized inside each head, by LayerNorm and RMSNorm."""

    def make(self) -> None:
        self.qkv, self.q_norm, self.k_norm = nn.Linear(12, 36), nn.LayerNorm(4), nn.RMSNorm(4)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return y.transpose(1, 2).reshape(-1, 16, 12)


class Rotary(Tokenized):
    """Rotary embeddings: halves of a head change places, so a channel goes with its partner."""

    def make(self) -> None:
        self.qkv = nn.Linear(12, 36)
        angles = torch.arange(16.0)[:, None] * torch.tensor([1.0, 0.3])
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], 1))
        self.register_buffer("sin", torch.cat([angles.sin(), angles.sin()], 1))

    def turn(self, x: Tensor) -> Tensor:
        return x * self.cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * self.sin

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return y.transpose(1, 2).reshape(-1, 16, 12)


class ShiftedWindows(Tokenized):
    """Windows after a cyclic shift, with a mask for those that hold two sides of the image."""

    def make(self) -> None:
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        mask = torch.zeros(4, 4, 4)
        mask[1:, :2, 2:] = -100.0
        self.register_buffer("mask", mask)

    def mix(self, x: Tensor) -> Tensor:
        maps = torch.roll(x.view(-1, 4, 4, 12), (-1, -1), (1, 2))
        y = maps.view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 12)
        q, k, v = self.qkv(y).view(-1, 4, 3, 3, 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).view(-1, 4, 3, 4, 4) + self.mask[None, :, None]
        y = self.out((scores.view(-1, 3, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 12))
        y = y.view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12)
        return x + torch.roll(y, (1, 1), (1, 2)).view(-1, 16, 12)


class Einsum(Tokenized):
    """Attention by letters, a product with "...", and one whose result is not spelled."""

    width = 6

    def make(self) -> None:
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.weight, self.last = nn.Parameter(torch.zeros(12, 8)), nn.Parameter(torch.zeros(8, 6))

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(-1, 16, 3, 4) for f in (self.query, self.key, self.value))
        scores = torch.einsum("bnhd, bmhd -> bhnm", q, k).softmax(-1)
        y = torch.einsum("bhnm,bmhd->bnhd", scores, v).reshape(-1, 16, 12)
        y = torch.einsum("...c,cd->...d", y, self.weight).relu()
        return torch.einsum("bnc,cz", y, self.last)


class TokenMixing(Tokenized):
    """An MLP over tokens, whose layers are convolutions of kernel 1: tokens are their channels, channels positions."""

    def make(self) -> None:
        self.up, self.down = nn.Conv1d(16, 10, 1), nn.Conv1d(10, 16, 1)
        self.channels = nn.Linear(12, 12)

    def mix(self, x: Tensor) -> Tensor:
        return self.channels(x + self.down(self.up(x).relu())) + x


class Transformer(Tokenized):
    """An encoder layer of torch's own."""

    def make(self) -> None:
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x)


class CrossAttention(Tokenized):
    """Keys and values of another width from another tensor, by nn.MultiheadAttention."""

    def make(self) -> None:
        self.memory = nn.Linear(12, 10)
        self.attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True)

    def mix(self, x: Tensor) -> Tensor:
        memory = self.memory(x)
        return x + self.attention(x, memory, memory, need_weights=False)[0]


class Cells(Tokenized):
    """Recurrent cells, which the analysis knows by what they are made of."""

    width = 4

    def make(self) -> None:
        self.gru, self.lstm, self.rnn = nn.GRUCell(12, 7), nn.LSTMCell(7, 6), nn.RNNCell(6, 4)

    def mix(self, x: Tensor) -> Tensor:
        hidden, cell = self.lstm(self.gru(x[:, 0]))
        return self.rnn(hidden + cell)[:, None]


class Composites(Tokenized):
    """Operators without a rule that are made of others: stacks and splits by other names, turns, a split batch."""

    width = 6

    def make(self) -> None:
        self.body, self.last = nn.Conv2d(12, 6, 3, padding=1), nn.Linear(6, 6)

    def mix(self, x: Tensor) -> Tensor:
        maps = self.body(x.transpose(1, 2).reshape(-1, 12, 4, 4)).rot90(1, (2, 3))
        first, second = torch.vstack([maps, maps.relu()]).chunk(2, 0)
        left, right = torch.column_stack([first, second]).hsplit(2)
        return self.last((left * right).flatten(2).transpose(1, 2))

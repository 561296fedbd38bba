"""Modules for random networks that take a map (N, C, H, W) for H*W tokens of C channels, and give one of that size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens_of(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, like: Tensor) -> Tensor:
    """(N, H*W, C) to the size of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape)


class SharedAttention(nn.Module):
    """Queries with more heads than keys and values, or as many; fused, by hand, or by letters."""

    def __init__(self, channels: int, heads: int, kv_heads: int, size: int, form: str) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size, self.form = heads, kv_heads, size, form
        self.query, self.pair = nn.Linear(channels, heads * size), nn.Linear(channels, 2 * kv_heads * size)
        self.out = nn.Linear(heads * size, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = tokens_of(x)
        n, length, _ = tokens.shape
        q = self.query(tokens).view(n, length, self.heads, self.size).transpose(1, 2)
        k, v = (half.transpose(1, 2) for half in self.pair(tokens).view(n, length, 2, -1, self.size).unbind(2))
        if self.form == "fused":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv_heads not in (1, self.heads))
        else:
            if self.kv_heads > 1:
                k, v = (half.repeat_interleave(self.heads // self.kv_heads, 1) for half in (k, v))
            if self.form == "by letters":
                scores = torch.einsum("bhnd,bhmd->bhnm", q, k.expand_as(q)).softmax(-1)
                y = torch.einsum("bhnm,bhmd->bhnd", scores, v.expand_as(q))
            else:
                y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return map_of(self.out(y.transpose(1, 2).reshape(n, length, -1)), x)


class OverTokens(nn.Module):
    """A convolution of kernel 1 whose channels are the tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        return map_of(self.mix(tokens_of(x)), x)


class AlongTokens(nn.Module):
    """A recurrent layer that reads the tokens in order."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(channels, channels, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return map_of(self.layer(tokens_of(x))[0], x)


class OneStep(nn.Module):
    """A recurrent cell on the mean of the tokens, twice, as a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = tokens_of(x).mean(1)
        return x * self.cell(mean, self.cell(mean))[:, :, None, None]

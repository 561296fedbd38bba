"""The same computation, written in two ways, couples the same channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import Net, image
from torch import Tensor, nn

import graphprune as gp
from graphprune.testing import written_out

#: What is done with a feature map of 12 channels, 4 by 4; `net` has some parameters.
Snippet = Callable[[Net, Tensor], Tensor]

#: Between two convolutions: (names, one way, the other). Not among them: a part of a single channel, which a slice may
#: drop and a split may not; every second channel, which a slice takes as pairs, and an index one by one.
MAPS: list[tuple[str, Snippet, Snippet]] = [
    ("chunk, slices", lambda n, y: sum(y.chunk(2, 1)), lambda n, y: y[:, :6] + y[:, 6:]),
    ("split, narrow", lambda n, y: sum(y.split(6, 1)), lambda n, y: y.narrow(1, 0, 6) + y.narrow(1, 6, 6)),
    ("split of sizes, slices", lambda n, y: y.split([2, 10], 1)[1], lambda n, y: y[:, 2:]),
    ("concatenation of a split, nothing", lambda n, y: torch.cat(y.split(2, 1), 1), lambda n, y: y),
    ("concatenation of slices, roll", lambda n, y: torch.cat([y[:, :, 3:], y[:, :, :3]], 2), lambda n, y: y.roll(1, 2)),
    ("hstack, concatenation", lambda n, y: torch.hstack([y, y + 1]), lambda n, y: torch.cat([y, y + 1], 1)),
    ("flip, index", lambda n, y: y.flip(1), lambda n, y: y[:, list(range(11, -1, -1))]),
    ("index_select, slices", lambda n, y: y.index_select(1, torch.tensor([0, 1, 2])), lambda n, y: y[:, :3]),
    (
        "view, reshape",
        lambda n, y: y.view(-1, 12, 16).view(-1, 12, 4, 4),
        lambda n, y: y.reshape(-1, 12, 16).reshape(y.shape),
    ),
    ("view, flatten", lambda n, y: y.view(-1, 12, 16)[..., None], lambda n, y: y.flatten(2).unsqueeze(-1)),
    ("permute, transpose", lambda n, y: y.permute(0, 1, 3, 2), lambda n, y: y.transpose(2, 3)),
    (
        "permute, movedim",
        lambda n, y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda n, y: y.movedim(1, 3).movedim(3, 1),
    ),
    (
        "channel_shuffle, view and transpose",
        lambda n, y: F.channel_shuffle(y, 2),
        lambda n, y: y.view(-1, 2, 6, 4, 4).transpose(1, 2).reshape(-1, 12, 4, 4),
    ),
    (
        "pixel_shuffle, view and permute",
        lambda n, y: F.pixel_shuffle(y, 2),
        lambda n, y: y.view(-1, 3, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(-1, 3, 8, 8),
    ),
    ("repeat, concatenation", lambda n, y: y.repeat(1, 2, 1, 1), lambda n, y: torch.cat([y, y], 1)),
    (
        "repeat_interleave, expand",
        lambda n, y: y.repeat_interleave(2, 1),
        lambda n, y: y[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2),
    ),
    ("sum of a stack, addition", lambda n, y: torch.stack([y, n.gain * y]).sum(0), lambda n, y: y + n.gain * y),
    ("glu, halves", lambda n, y: F.glu(y, 1), lambda n, y: y[:, :6] * torch.sigmoid(y[:, 6:])),
    ("silu, product", lambda n, y: F.silu(y), lambda n, y: y * torch.sigmoid(y)),
    ("relu, clamp", lambda n, y: F.relu(y), lambda n, y: y.clamp(min=0)),
    ("relu, maximum", lambda n, y: F.relu(y), lambda n, y: torch.maximum(y, torch.zeros_like(y))),
    ("prelu, where", lambda n, y: F.prelu(y, n.slope), lambda n, y: torch.where(y > 0, y, n.slope[:, None, None] * y)),
    (
        "depthwise convolution of one position, product",
        lambda n, y: F.conv2d(y, n.slope[:, None, None, None], groups=12),
        lambda n, y: y * n.slope[:, None, None],
    ),
    (
        "convolution of one position, linear",
        lambda n, y: F.conv2d(y, n.mix[:, :, None, None], n.shift),
        lambda n, y: F.linear(y.permute(0, 2, 3, 1), n.mix, n.shift).permute(0, 3, 1, 2),
    ),
    (
        "linear, product with a transposed matrix",
        lambda n, y: F.linear(y.mT.movedim(1, 3), n.mix).movedim(3, 1),
        lambda n, y: (y.mT.movedim(1, 3) @ n.mix.T).movedim(3, 1),
    ),
    (
        "einsum, linear",
        lambda n, y: torch.einsum("nchw,oc->nohw", y, n.mix),
        lambda n, y: F.linear(y.permute(0, 2, 3, 1), n.mix).permute(0, 3, 1, 2),
    ),
    (
        "convolution in one dimension, in two of height 1",
        lambda n, y: F.conv1d(y.flatten(2), n.row)[:, :, None],
        lambda n, y: F.conv2d(y.flatten(2)[:, :, None], n.row[:, :, None]),
    ),
    (
        "mean, pooling",
        lambda n, y: y.mean((2, 3), keepdim=True),
        lambda n, y: F.adaptive_avg_pool2d(y, 1),
    ),
    (
        "addition of a shift, addcmul",
        lambda n, y: y + n.gain * n.slope[:, None, None],
        lambda n, y: torch.addcmul(y, n.gain, n.slope[:, None, None]),
    ),
]


def parts() -> dict[str, Any]:
    return {
        "gain": torch.zeros(()),
        "slope": torch.zeros(12),
        "mix": torch.zeros(5, 12),
        "shift": torch.zeros(5),
        "row": torch.zeros(5, 12, 3),
    }


def groups(snippet: Snippet, channels: int) -> list[str]:
    """The groups of a network with the snippet between two convolutions, in an order of their own."""
    convolutions = {"first": nn.Conv2d(3, 12, 1), "last": nn.Conv2d(channels, 2, 1)}
    net = Net(lambda net, x: net.last(snippet(net, net.first(x))), **convolutions, **parts())
    graph = gp.trace(net, image(2, 3, 4, 4))
    assert graph.unknown == {}
    return sorted(" ".join(sorted(group.split())) for group in written_out(graph))


@pytest.mark.parametrize(("one", "other"), [pair[1:] for pair in MAPS], ids=[pair[0] for pair in MAPS])
def test_both_ways_give_the_same_groups(one, other):
    net, (y,) = Net(lambda net, x: x, **parts()), image(2, 12, 4, 4)
    with torch.no_grad():
        first, second = one(net, y), other(net, y)
    assert torch.allclose(first, second, atol=1e-6)  # else the table would say nothing
    found = groups(one, first.shape[1])
    assert found == groups(other, first.shape[1])
    assert found

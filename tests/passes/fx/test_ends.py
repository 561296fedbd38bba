"""What a captured graph says of its outputs, and its raw heads."""

import pytest
import torch
from torch import nn

from graphprune.passes.channels.ends import End, viewed
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.ends import output_end, output_nodes
from graphprune.passes.fx.heads import raw_heads


class Ended(nn.Module):
    """A convolution, and what `end` makes of its result of shape (batch, 6, 4, 5)."""

    def __init__(self, end):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.end = end

    def forward(self, x):
        return self.end(self.conv(x))


def captured(end):
    return capture(Ended(end).eval(), (torch.randn(2, 3, 4, 5),))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda x: x.softmax(1), ("classes", 1, 1)),
        (lambda x: x.permute(0, 2, 3, 1).log_softmax(-1), ("classes", 3, 3)),
        (lambda x: x.softmax(1).permute(0, 2, 3, 1), ("classes", 3, 1)),
        (lambda x: x.mean(2).transpose(1, 2).softmax(2), ("classes", 2, 2)),
        (lambda x: x.softmax(1).flatten(2).transpose(1, 2), ("classes", 2, 1)),
        (lambda x: x.mean((2, 3), keepdim=True).softmax(1).squeeze(3).squeeze(2), ("classes", 1, 1)),
        (lambda x: x.argmax(1), ("labels", 1, 1)),
        (lambda x: x.sigmoid().clone(), ("scores", 0, 0)),
        (lambda x: x, None),
        (lambda x: x.softmax(1) * 2, None),
        (lambda x: x.flatten(1).argmax(), None),
    ],
)
def test_the_last_operator_says_what_an_output_is(end, expected):
    module = captured(end)
    (node,) = output_nodes(module.graph)
    found = output_end(node)
    if expected is None:
        assert found is None
    else:
        kind, axis, before = expected
        assert isinstance(found, End)
        assert (found.kind, found.axis, found.source_axis) == (kind, axis, before)
        source = next(n for n in module.graph.nodes if n.name == found.source)
        assert source.meta["val"].shape[before] == 6 or kind == "scores"


def test_a_dimension_is_followed_through_reshapes_that_leave_it_one():
    assert viewed(1, ["n", 6, 4, 5], ["n", 6, 20]) == 1
    assert viewed(3, ["n", 4, 5, 6], ["n", 20, 6]) == 2
    assert viewed(1, ["n", 10, 1, 1], ["n", 10]) == 1
    assert viewed(1, ["n", 6, 4], ["n", 24]) is None
    assert viewed(1, ["n", 6, 4], ["n", 4, 6]) is None


class Detector(nn.Module):
    """Two heads, decoded with anchors and strides and joined."""

    def __init__(self, kind="joined"):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)
        self.register_buffer("anchors", torch.rand(4, 20) * 100)
        self.kind = kind

    def forward(self, x):
        x = torch.relu(self.stem(x))
        boxes, scores = self.boxes(x), self.scores(x)
        if self.kind == "sum":
            return boxes + scores.mean(1, keepdim=True)
        if self.kind == "shortcut":
            return boxes + x[:, :4]
        if self.kind == "alone":
            return boxes.tanh().flatten(2)
        if self.kind == "scaled":
            return boxes.flatten(2).exp() * 8 + self.anchors
        return torch.cat([boxes.flatten(2) * self.anchors, scores.flatten(2).sigmoid()], 1)


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("joined", [4, 3]), ("scaled", [4]), ("sum", None), ("shortcut", None), ("alone", None)],
)
def test_raw_heads_stand_before_the_decoding_and_nowhere_else(kind, channels):
    module = capture(Detector(kind).eval(), (torch.randn(2, 3, 4, 5),))
    (output,) = output_nodes(module.graph)
    heads = raw_heads(module, output)
    if channels is None:
        assert heads == [output]
    else:
        assert [head.meta["val"].shape[1] for head in heads] == channels


def test_a_bias_that_is_added_apart_belongs_to_its_head():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.scale = nn.Parameter(torch.rand(2, 5, 4))

        def forward(self, x):
            return torch.matmul(x, self.weight) + self.bias

    module = capture(Apart().eval(), (torch.randn(2, 5, 3),))
    (output,) = output_nodes(module.graph)
    assert raw_heads(module, output) == [output]

"""What of a network is learned: in front of its ends, and its raw heads."""

import pytest
import torch
from torch import nn

from graphprune.importance.learned import Learned
from graphprune.importance.output_loss import Form
from graphprune.passes.fx.capture import capture


class Ended(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1)
        self.end = end

    def forward(self, x):
        return self.end(self.conv(x), self.other(x))


def learned(end, setting="auto"):
    module = capture(Ended(end).eval(), (torch.randn(2, 3, 4, 5),))
    found = Learned.of(module, setting)
    tensors = module.with_taps((), found.nodes)(torch.randn(2, 3, 4, 5))[0]
    return [(*form.__dict__.values(), tuple(t.shape)) for form, t in zip(found.forms(tensors), tensors, strict=True)]


def steps(x, y):
    return x.mean(2).transpose(1, 2).softmax(2)


def detector(x, y):
    return torch.cat([x.flatten(2) * 640, y.flatten(2).sigmoid()], 1)


@pytest.mark.parametrize(
    ("end", "setting", "expected"),
    [
        (steps, "auto", [("logits", 2, (2, 5, 6))]),
        (steps, "mse", [("values", 1, (2, 5, 6))]),
        (lambda x, y: y.sigmoid(), "auto", [("scores", 1, (2, 2, 4, 5))]),
        (lambda x, y: y.sigmoid(), "kl", [("logits", 1, (2, 2, 4, 5))]),
        (lambda x, y: (x.argmax(1), x.softmax(1)), "auto", [("logits", 1, (2, 6, 4, 5))]),
        (detector, "auto", [("values", 1, (2, 6, 4, 5)), ("values", 1, (2, 2, 4, 5))]),
        (lambda x, y: (x.mean((2, 3)).softmax(1), y), "auto", [("logits", 1, (2, 6)), ("values", 1, (2, 2, 4, 5))]),
        (lambda x, y: x.mean((2, 3)), "auto", [("logits", 1, (2, 6))]),
    ],
)
def test_what_is_learned_of_a_network(end, setting, expected):
    assert learned(end, setting) == expected


def test_what_stands_behind_is_not_computed():
    module = capture(Ended(detector).eval(), (torch.randn(2, 3, 4, 5),))
    tapped = module.with_taps((), Learned.of(module).nodes)
    assert {str(node.target) for node in tapped.inner.graph.nodes if node.op == "call_function"} == {
        "aten.conv2d.default"
    }
    assert Form("values").is_classes is False

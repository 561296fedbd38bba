import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.models import mobilenet_v2, resnet56
from graphprune.report.inspection import describe_graph, summarize


def by_name(found):
    return {entry["name"]: entry for entry in found["sets"]}


def test_resnet56_has_a_trunk_for_each_stage_and_the_inner_channels_of_each_block():
    found = describe_graph(gp.trace(resnet56(), (torch.zeros(2, 3, 32, 32),)))
    sets = by_name(found)
    trunks = {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}  # what each stage adds to the trunk
    inner = {f"layer{s}.{b}.conv1": 16 * 2 ** (s - 1) for s in (1, 2, 3) for b in range(9)}
    assert {name: entry["channels"] for name, entry in sets.items()} == {**trunks, **inner}
    assert sets["conv1"]["layers"] == ["conv1", *(f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in range(9))]
    assert sets["layer1.0.conv1"]["layers"] == ["layer1.0.conv1"]
    members = [(m["parameter"], m["dim"], m["indices"]) for m in sets["layer1.0.conv1"]["members"]]
    norm = [(f"layer1.0.bn1.{name}", 0, 1) for name in ("weight", "bias", "running_mean", "running_var")]
    assert sorted(members) == sorted([("layer1.0.conv1.weight", 0, 1), *norm, ("layer1.0.conv2.weight", 1, 1)])
    assert all(entry["exact"] for entry in found["sets"])
    assert found["macs"] == 125_485_696
    # two 3x3 convolutions of 16 channels on a 32x32 map
    assert sets["layer1.3.conv1"]["macs_share"] == pytest.approx(2 * 16 * 16 * 9 * 1024 / 125_485_696)
    assert [entry["channels"] for entry in found["frozen"]] == [10]


def test_mobilenet_couples_expansion_depthwise_and_projection():
    found = describe_graph(gp.trace(mobilenet_v2(), (torch.zeros(2, 3, 32, 32),)))
    inner = next(e for e in found["sets"] if e["name"] == "features.2.conv.0.0")
    assert inner["layers"] == ["features.2.conv.0.0", "features.2.conv.1.0"]
    assert inner["channels"] == 96
    trunk = next(e for e in found["sets"] if e["name"] == "features.2.conv.2")
    assert trunk["layers"] == ["features.2.conv.2", "features.3.conv.2"]


class Odd(nn.Module):
    """A channel statistic, and an operator that nobody knows."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.c(torch.special.airy_ai(self.b(self.norm(self.a(x)))))


def test_what_is_inexact_unknown_or_frozen_is_said_with_its_reason():
    found = describe_graph(gp.trace(Odd(), (torch.zeros(2, 3, 4, 4),)))
    assert any("airy" in name for name in found["unknown_operators"])
    assert any("airy" in entry["reason"] and "b.weight" in entry["parameters"] for entry in found["frozen"])
    for entry in found["sets"]:
        assert entry["exact"] == (entry["why_inexact"] is None)
        assert "a" not in entry["layers"] or not entry["exact"]


def test_the_smallest_model_is_counted():
    found = describe_graph(gp.trace(nn.Conv2d(3, 4, 1), (torch.zeros(2, 3, 4, 4),)))
    assert found["sets"] == []
    assert found["least_macs_share"] == 1.0
    two = nn.Sequential(nn.Conv2d(3, 10, 1, bias=False), nn.ReLU(), nn.Conv2d(10, 4, 1, bias=False))
    assert describe_graph(gp.trace(two, (torch.zeros(2, 3, 4, 4),)))["least_params_share"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["conv1"], "conv1"),
        (["conv1", "layer1.0.conv2"], "conv1, layer1.0.conv2 (2 layers)"),
        (["layer1.0.conv2", "layer1.10.conv2"], "layer1.*.conv2 (2 layers)"),
        ([f"m{i}" for i in range(9)], "m0, m1, m2, m3, m4, ... (9 layers)"),
        (["0", "features.3"], "0, features.3 (2 layers)"),
    ],
)
def test_long_lists_of_layers_are_folded(names, text):
    assert summarize(names) == text

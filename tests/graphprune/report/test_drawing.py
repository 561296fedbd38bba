"""The drawing of coupled channels: well-formed, one box a layer, layers of one set in one color."""

import itertools
import re
from xml.etree import ElementTree

import pytest
import torch

from graphprune.models import mobilenet_v2, resnet20
from graphprune.passes.fx.analyze import trace
from graphprune.report.drawing import draw_svg


def _fills(svg: str) -> dict[str, list[str]]:
    """Layer name -> fills of its box, read from the text."""
    found: dict[str, list[str]] = {}
    for line in svg.splitlines():
        match = re.search(r'stroke="#444" rx="2"[^>]*/><text [^>]*>([^<]+)</text>', line)
        if match:
            found[match.group(1)] = re.findall(r'fill="(#[0-9a-f]{6})"', line.split('fill="none"')[0])
    return found


def test_a_residual_trunk_is_one_color_and_inner_channels_another():
    svg = draw_svg(trace(resnet20(), (torch.randn(2, 3, 32, 32),)), "ResNet20 <a & b>")
    ElementTree.fromstring(svg)  # well-formed, the title escaped
    fills = _fills(svg)
    assert len(fills) == 20
    assert fills["conv1"] == fills["layer1.0.conv2"] == fills["layer1.2.conv2"]
    assert fills["layer1.0.conv1"] != fills["layer1.1.conv1"]
    assert fills["conv1"][0] in fills["layer2.1.conv2"]  # the zero-padded shortcut couples the stages
    assert fills["linear"] == ["#d9d9d9"]


def test_sets_that_layers_share_stand_out_and_are_told_apart():
    """Strong colors far from one another for the three parts of the trunk, pale ones for what is a block's own."""
    graph = trace(resnet20(), (torch.randn(2, 3, 32, 32),))
    svg = draw_svg(graph)
    fills = _fills(svg)

    def channels(fill):
        return [int(fill[i : i + 2], 16) for i in (1, 3, 5)]

    trunk = fills["layer3.2.conv2"]
    assert len(set(trunk)) == 3
    for one, other in itertools.combinations(trunk, 2):
        assert max(abs(a - b) for a, b in zip(channels(one), channels(other), strict=True)) > 60
    inner = [fills[f"layer{stage}.{block}.conv1"][0] for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert all(min(channels(fill)) > 220 for fill in inner)
    assert not set(inner) & set(trunk)
    assert re.findall(r">([^<]*): \d+ channels", svg) == ["conv1", "layer2.0.conv2", "layer3.0.conv2"]


def test_a_bar_is_divided_as_the_outputs_are_and_dashed_where_all_may_go():
    svg = draw_svg(trace(resnet20(), (torch.randn(2, 3, 32, 32),)))
    box = next(line for line in svg.splitlines() if ">layer3.0.conv2<" in line and "rx=" in line)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', box)]
    assert widths == pytest.approx([105, 52.5, 52.5, 210])  # 32, 16 and 16 of 64 channels, and the frame
    assert "dasharray" not in box
    inner = next(line for line in svg.splitlines() if ">layer3.0.conv1<" in line and "rx=" in line)
    assert "dasharray" in inner


def test_every_layer_is_drawn_and_reached():
    svg = draw_svg(trace(mobilenet_v2(), (torch.randn(2, 3, 32, 32),)))
    root = ElementTree.fromstring(svg)
    paths = [item for item in root.iter() if item.tag.endswith("path")]
    assert len(_fills(svg)) == 53
    assert len(paths) >= 52

"""The drawing of coupled channels: well-formed, one box a layer, layers of one set in one color."""

import re
from xml.etree import ElementTree

import torch

from graphprune.drawing import draw_svg
from graphprune.models import mobilenet_v2, resnet20
from graphprune.passes.fx.analyze import trace


def _fills(svg: str) -> dict[str, list[str]]:
    """Layer name -> fills of its box, read from the text."""
    found: dict[str, list[str]] = {}
    for line in svg.splitlines():
        match = re.search(r'stroke="#444" rx="2"/><text [^>]*>([^<]+)</text>', line)
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


def test_every_layer_is_drawn_and_reached():
    svg = draw_svg(trace(mobilenet_v2(), (torch.randn(2, 3, 32, 32),)))
    root = ElementTree.fromstring(svg)
    paths = [item for item in root.iter() if item.tag.endswith("path")]
    assert len(_fills(svg)) == 53
    assert len(paths) >= 52

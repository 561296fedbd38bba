import xml.etree.ElementTree as ET

import pytest

from graphprune.search.curve import draw_curve

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("rewards", [[0.5], [0.3, 0.3, 0.3], [0.1, -7.0, 0.4, 0.2]])
def test_every_evaluation_is_a_dot_within_the_picture(rewards):
    root = ET.fromstring(draw_curve(rewards, "a < b"))
    dots = root.findall(f"{SVG}circle")
    assert len(dots) == len(rewards)
    assert all(0 < float(dot.get("cx")) < 720 and 0 < float(dot.get("cy")) < 360 for dot in dots)
    best = [float(point.split(",")[1]) for point in root.find(f"{SVG}polyline").get("points").split()]
    assert best == sorted(best, reverse=True)  # up is better, and y grows downwards
    assert "a < b" in "".join(root.itertext())

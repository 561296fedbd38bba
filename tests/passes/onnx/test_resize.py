"""A Resize of some axes becomes one of all; what cannot be said so stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run

from graphprune.passes.onnx.resize import ResizeAllAxesPass


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1], [3]])
@pytest.mark.parametrize(
    ("kind", "options", "modified"),
    [
        ("scales", {"mode": "nearest"}, True),
        ("scales", {"mode": "linear"}, True),
        ("sizes", {"mode": "linear"}, True),
        ("sizes", {"mode": "nearest", "keep_aspect_ratio_policy": "not_larger"}, False),
        ("scales", {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, False),
    ],
)
def test_axes(opset, axes, kind, options, modified):
    b = Builder(opset)
    x = b.input(("n", 3, 8, 6))
    numbers = np.float32([2, 1.5]) if kind == "scales" else np.array([12, 9])
    given = b.literal(numbers[: len(axes)])
    cropped = "coordinate_transformation_mode" in options
    region = b.literal(np.float32([0] * len(axes) + [1] * len(axes))) if cropped else ""
    x = b.call("Resize", x, region, *([given] if kind == "scales" else ["", given]), axes=axes, **options)
    b.output(x, ("n", 3, "h", "w"))
    model = b.model()
    loaded = ir.from_proto(model)
    assert ResizeAllAxesPass()(loaded).modified == modified
    assert not ResizeAllAxesPass()(loaded).modified
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after, full_check=True)
    feeds = {"x": image(2, 3, 8, 6)}
    assert difference(run(model, feeds), run(after, feeds)) == 0

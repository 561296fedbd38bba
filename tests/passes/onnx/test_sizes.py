"""Sizes of results that onnx does not tell, or tells otherwise than onnxruntime makes them."""

import numpy as np
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, shapes
from slimmed import check, kill, slimmed

from graphprune.passes.onnx.analyze import trace_onnx


@pytest.mark.parametrize("kind", ["GroupNormalization", "MeanVarianceNormalization"])
def test_what_follows_a_norm_that_onnx_says_nothing_of_is_analyzed(kind):
    """The layer behind it has a dead channel."""
    b = Builder(21)
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    if kind == "GroupNormalization":
        x = b.call(kind, x, b.vector(8), b.vector(8), num_groups=4)
    else:
        x = b.call(kind, x, axes=[2, 3])
    x = b.call("Relu", b.conv(b.call("Relu", x), 8, 8, name="second"))
    b.output(b.conv(x, 8, 4, name="third"), ("n", 4, 8, 8))
    model = b.model(ir_version=10)
    kill(model, "second", [1, 5])
    check(model, {"second.weight": (6, 8, 3, 3), "third.weight": (4, 6, 3, 3)})
    # Of a channel of zeros onnxruntime's MeanVarianceNormalization makes NaN, so there is no rule that lets one go.
    assert set(trace_onnx(ir.from_proto(model)).unknown) == {kind} - {"GroupNormalization"}


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [18, 22])
def test_a_window_in_the_padding_alone_is_none(kind, opset):
    """Seven pixels, two at a time, one of padding: four windows; a fifth would see nothing."""
    b = Builder(opset)
    x = b.call("Relu", b.conv(b.input((1, 3, 7, 7)), 3, 8, name="first"))
    x = b.call(kind, x, kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
    x = b.call("Reshape", x, b.literal(np.array([1, 8 * 16])))
    b.output(b.call("MatMul", x, b.weight(8 * 16, 4, name="head")), (1, 4))
    model = b.model(ir_version=10)
    kill(model, "first", [1, 5])
    slim, feeds = slimmed(model), {"x": image(1, 3, 7, 7)}
    assert (shapes(slim)["first.weight"], shapes(slim)["head"]) == ((6, 3, 3, 3), (6 * 16, 4))
    assert difference(run(model, feeds), run(slim, feeds)) < 1e-5

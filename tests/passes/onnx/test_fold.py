"""Branches whose channels all went: what is added in their place is what they computed."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import FLOAT, Builder, image, zero
from slimmed import check, kill

from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.slim import slim_model


def branch(given, opset: int = 17) -> onnx.ModelProto:
    """A residual branch with dead channels inside, whose last layer has a bias that `given(builder)` gives."""
    b = Builder(opset)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="stem"))
    y = b.call("Relu", b.conv(x, 8, 6, name="inner"))
    y = b.call("Conv", y, b.weight(8, 6, 3, 3, name="outer"), given(b), pads=[1] * 4)
    b.output(b.conv(b.call("Relu", b.call("Add", x, y)), 8, 4, name="last"))
    model = b.model()
    kill(model, "inner", slice(None))
    return model


NUMBERS = np.linspace(-2, 2, 8, dtype=np.float32)
INTEGERS = np.arange(8, dtype=np.int32) - 4


def dequantized(b: Builder, scale: np.ndarray, **attributes: int) -> str:
    return b.call("DequantizeLinear", b.literal(INTEGERS), b.literal(scale), **attributes)


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize(
    "given",
    [
        lambda b: b.literal(NUMBERS),
        lambda b: b.call("Identity", b.literal(NUMBERS)),
        lambda b: b.call("Constant", value_floats=NUMBERS.tolist()),
        lambda b: b.call("Cast", b.literal(NUMBERS.astype(np.float64)), to=FLOAT),
        lambda b: b.call("Neg", b.call("Cast", b.literal(NUMBERS.astype(np.float64)), to=FLOAT)),
        lambda b: dequantized(b, np.float32(0.3)),
        lambda b: dequantized(b, np.linspace(0.1, 0.5, 8, dtype=np.float32), axis=0),
    ],
    ids=["literal", "Identity", "Constant", "Cast", "two steps", "DequantizeLinear", "a scale a channel"],
)
def test_a_bias_that_is_computed_is_what_the_branch_gives(given, opset):
    check(branch(given, opset), {"inner.weight": None, "outer": None, "stem.weight": (8, 3, 3, 3)})


@pytest.mark.parametrize("listed", [False, True], ids=["an input", "a literal that may be overridden"])
def test_a_branch_stays_where_its_bias_is_given_by_the_caller(listed):
    model = branch(lambda b: b.literal(NUMBERS, "given") if listed else b.input((8,), "given"))
    if listed:
        model.graph.input.append(onnx.helper.make_tensor_value_info("given", FLOAT, (8,)))
    feeds = {"x": image(2, 3, 8, 8), "given": image(8)}
    check(model, {"inner.weight": (1, 8, 3, 3), "outer": (8, 1, 3, 3)}, feeds)


def test_a_bias_that_depends_on_the_image_size_is_refused_in_one_line():
    model = branch(lambda b: b.call("Expand", b.literal(np.float32(2)), b.call("Shape", "x", start=2, end=3)))
    with pytest.raises(UnsupportedModelError, match=r"its bias 'expand_\d+' cannot be computed ahead") as caught:
        slim_model(ir.from_proto(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 1), (1, 8), (4, 1), (4, 8)])
def test_the_bias_of_a_gemm_has_many_forms(shape, beta):
    b = Builder(17)
    x = b.call("Relu", b.call("Gemm", b.input((4, 8)), b.weight(8, 8), b.vector(8)))
    y = b.call("Relu", b.call("Gemm", x, b.weight(8, 6, name="inner"), b.literal(np.zeros(6, np.float32))))
    y = b.call("Gemm", y, b.weight(6, 8, name="outer"), b.literal(image(*shape)), beta=beta, alpha=3.0)
    b.output(b.call("Gemm", b.call("Relu", b.call("Add", x, y)), b.weight(8, 4), b.vector(4)))
    model = b.model()
    zero(model, "inner", slice(None))
    check(model, {"inner": None, "outer": None}, {"x": image(4, 8)})

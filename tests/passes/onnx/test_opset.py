"""A model in a later opset computes what it did, also where the operator's defaults have changed."""

import numpy as np
import onnx
import pytest
from builder import INT64, Builder, difference, image, run
from onnx import TensorProto, helper

from graphprune.passes.onnx.opset import raise_opset

X = {"x": image(1, 3, 7, 7)}


def enlarged(opset, kind, scale, mode):
    b = Builder(opset)
    scales = b.literal(np.array([1, 1, scale, scale], np.float32))
    b.output(b.call(kind, b.input((1, 3, 7, 7)), scales, mode=mode), (1, 3, "h", "w"))
    return b.model(ir_version=6)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(
    ("opset", "kind", "scale"), [(9, "Upsample", 2), (9, "Upsample", 1.5), (10, "Resize", 3), (10, "Resize", 0.6)]
)
def test_a_resize_of_old_goes_on_looking_where_it_looked(opset, kind, scale, mode):
    model = enlarged(opset, kind, scale, mode)
    raised = raise_opset(model, 13)
    onnx.checker.check_model(raised, full_check=True)
    assert raised.opset_import[0].version == 13
    assert difference(run(model, X), run(raised, X)) < 1e-6


def test_what_cannot_be_said_in_the_later_opset_is_refused():
    b = Builder(10)
    scales = b.literal(np.array([1, 1, 2, 0.5], np.float32))
    b.output(b.call("Resize", b.input((1, 3, 8, 8)), scales, mode="nearest"), (1, 3, 16, 4))
    with pytest.raises(ValueError, match="enlarges along one axis and makes smaller along another"):
        raise_opset(b.model(ir_version=6), 13)
    b = Builder(11)
    b.output(b.call("Hardmax", b.input((1, 3, 8, 8)), axis=1), (1, 3, 8, 8))
    with pytest.raises(ValueError, match="Hardmax means another thing from opset 13"):
        raise_opset(b.model(ir_version=6), 13)
    assert raise_opset(b.model(ir_version=6), 12).opset_import[0].version == 12


def test_a_resize_that_says_where_it_looks_is_believed():
    b = Builder(11)
    none, scales = b.literal(np.zeros(0, np.float32)), b.literal(np.array([1, 1, 2, 2], np.float32))
    b.output(b.call("Resize", b.input((1, 3, 7, 7)), none, scales, mode="linear"), (1, 3, 14, 14))
    raised = raise_opset(b.model(ir_version=6), 13)
    assert difference(run(b.model(ir_version=6), X), run(raised, X)) < 1e-6
    assert [attribute.name for attribute in raised.graph.node[-1].attribute] == ["mode"]


def test_a_resize_in_a_branch_is_one_of_old_too():
    b = Builder(10)
    x, scales = b.input((1, 3, 7, 7)), b.literal(np.array([1, 1, 2, 2], np.float32), "scales")

    def branch(name, mode):
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 14, 14])
        return helper.make_graph([helper.make_node("Resize", [x, scales], [name], mode=mode)], name, [], [given])

    small = b.call("Less", b.call("Size", x), b.input((), "limit", INT64))
    linear, nearest = branch("linear", "linear"), branch("nearest", "nearest")
    b.output(b.call("If", small, then_branch=linear, else_branch=nearest), (1, 3, 14, 14))
    model = b.model(ir_version=6)
    for limit in (0, 1000):
        feeds = {**X, "limit": np.array(limit)}
        assert difference(run(model, feeds), run(raise_opset(model, 13), feeds)) < 1e-6

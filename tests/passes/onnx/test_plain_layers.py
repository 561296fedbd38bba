"""Layers in the form that is quantized rightly compute what they did, and nothing else is changed."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run
from onnx import helper

from graphprune.passes.onnx.plain_layers import OwnKernelsPass, PlainGemmPass, ShieldBodiesPass, channel_axis


def applied(model, step):
    """The model after a pass that changed it, and whose second run finds nothing."""
    loaded = ir.from_proto(model)
    assert step()(loaded).modified
    assert not step()(loaded).modified
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after, full_check=True)
    return after


def kept(model, step):
    loaded = ir.from_proto(model)
    assert not step()(loaded).modified


def gemm(bias, shared=False, **attributes):
    b = Builder()
    x = b.input(("n", 6))
    w = b.weight(*((4, 6) if attributes.get("transB") else (6, 4)))
    inputs = [x, w] if bias is None else [x, w, b.literal(np.asarray(bias, np.float32))]
    b.output(b.call("Gemm", *inputs, **attributes), ("n", 4))
    if shared:
        b.output(b.call("MatMul", x, w), ("n", 4))
    return b.model()


ROWS = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("bias", "attributes"),
    [
        ([[1, 2, 3, 4]], {}),
        (0.5, {}),
        ([0.5], {"transB": 1}),
        ([1, 2, 3, 4], {"beta": 3.0}),
        ([[1, 2, 3, 4]], {"alpha": 0.5, "beta": -2.0, "transB": 1}),
        (None, {"alpha": 0.25}),
        ([1, 2, 3, 4], {"alpha": 0.0}),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_matrix_product_without_factors(bias, attributes, shared):
    if shared and attributes.get("transB"):
        return
    model = gemm(bias, shared, **attributes)
    after = applied(model, PlainGemmPass)
    (node,) = [node for node in after.graph.node if node.op_type == "Gemm"]
    assert {a.name for a in node.attribute} <= {"transB"}
    stored = {t.name: t for t in after.graph.initializer}
    assert all(tuple(stored[name].dims) == (4,) for name in node.input[2:])
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in stored.values())
    assert difference(run(model, {"x": ROWS}), run(after, {"x": ROWS})) < 1e-6


@pytest.mark.parametrize("bias", [[1, 2, 3, 4], None, [[1], [2], [3]], np.ones((3, 4))])
def test_a_matrix_product_that_is_plain_or_adds_one_number_a_sample(bias):
    kept(gemm(bias), PlainGemmPass)


def test_a_matrix_product_whose_matrix_is_computed():
    b = Builder()
    x = b.input((4, 4))
    b.output(b.call("Gemm", x, b.call("Relu", x), alpha=0.5), (4, 4))
    kept(b.model(), PlainGemmPass)


def test_kernels_have_their_channels_along_one_dimension():
    assert [channel_axis(kind, {}) for kind in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu")] == [
        0,
        1,
        1,
        1,
        None,
    ]
    assert channel_axis("Gemm", {"transB": 1}) == channel_axis("ConvTranspose", {"group": 2}) == 0


def two_layers(first, second, **attributes):
    b = Builder()
    x = b.input(("n", 4, 8, 8))
    w = b.weight(4, 4, 3, 3)
    b.output(b.call(first, x, w, pads=[1] * 4), ("n", 4, 8, 8))
    b.output(b.call(second, x, w, pads=[1] * 4, **attributes), ("n", 4, 8, 8))
    return b.model()


def test_a_kernel_of_two_directions_becomes_two():
    model = two_layers("Conv", "ConvTranspose")
    after = applied(model, OwnKernelsPass)
    assert len({node.input[1] for node in after.graph.node}) == 2
    x = {"x": image(2, 4, 8, 8)}
    assert difference(run(model, x), run(after, x)) == 0


def test_a_kernel_of_one_direction_stays_one():
    kept(two_layers("Conv", "Conv", dilations=[1, 1]), OwnKernelsPass)


def branch(name, *nodes, literals=()):
    value = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [value], list(literals))


def test_bodies_read_features_and_biases_through_something_of_their_own():
    b = Builder()
    x = b.input(("n", 3, 6, 6))
    bias = b.vector(4, "bias")
    a = b.call("Conv", x, b.weight(4, 3, 1, 1), bias)
    r = b.call("Relu", a)
    large = b.call("Greater", b.call("Size", x), b.literal(np.int64(50)))
    inner = branch(
        "inner",
        helper.make_node("Add", [a, r], ["s"]),
        helper.make_node("ReduceSum", [bias], ["t"], keepdims=0),
        helper.make_node("Mul", ["s", "t"], ["u"]),
    )
    other = branch("other", helper.make_node("Relu", [a], ["v"]))
    b.output(b.call("If", large, then_branch=inner, else_branch=other), ("n", 4, 6, 6))
    model = b.model()
    after = applied(model, ShieldBodiesPass)
    outside = {name for node in after.graph.node for name in node.output}
    read = {name for node in after.graph.node for at in node.attribute for i in at.g.node for name in i.input}
    assert read & outside == {f"{a}_for_bodies", f"{r}_for_bodies"}
    assert "bias" not in read
    assert [node.op_type for node in after.graph.node].count("Identity") == 2
    for size in (1, 4):
        feed = {"x": image(size, 3, 6, 6)}
        assert difference(run(model, feed), run(after, feed)) == 0


def test_a_graph_without_bodies_needs_no_shields():
    kept(two_layers("Conv", "Conv"), ShieldBodiesPass)

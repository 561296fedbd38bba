"""Dead channels in graphs of every kind are found without a plan, and what is left computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import FLOAT, INT64, Builder, difference, image, literal, run, shapes, zero

from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.slim import ChannelRemovalPass, slim_model

X = {"x": image(2, 3, 8, 8)}
ONE = np.ones(1, np.float32)


def slimmed(model: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(model)
    slim_model(result)
    return result


def two_layers(b: Builder, shape=("n", 3, 8, 8), between=None) -> onnx.ModelProto:
    x = b.conv(b.input(shape), 3, 8, name="first")
    x = b.call("Relu", x)
    x = between(x) if between else x
    b.output(b.conv(x, 8, 4, name="second"), ("n", 4, "h", "w"))
    return b.model()


def kill(model: onnx.ModelProto, name: str, index) -> None:
    zero(model, f"{name}.weight", index)
    zero(model, f"{name}.bias", index)


def check(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]], feeds=None) -> ir.Model:
    """Slim; the sizes must be these, and the outputs as before."""
    feeds = feeds or X
    before = model.SerializeToString()
    result = slimmed(model)
    assert model.SerializeToString() == before
    found = shapes(result)
    assert {name: found.get(name) for name in sizes} == sizes
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for optimize in (False, True):
        assert difference(run(model, feeds, optimize), run(result, feeds, optimize)) < 1e-5
    return result


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_zero_producers_go(opset):
    model = two_layers(Builder(opset))
    kill(model, "first", [1, 5])
    check(model, {"first.weight": (6, 3, 3, 3), "first.bias": (6,), "second.weight": (4, 6, 3, 3)})


def test_zero_consumers_go():
    model = two_layers(Builder())
    zero(model, "second.weight", (slice(None), [0, 2, 3]))
    check(model, {"first.weight": (5, 3, 3, 3), "second.weight": (4, 5, 3, 3)})


def test_a_bias_keeps_a_channel_alive():
    model = two_layers(Builder())
    zero(model, "first.weight", [1])
    check(model, {"first.weight": (8, 3, 3, 3)})


def test_sigmoid_of_zero_is_not_zero():
    model = two_layers(b := Builder(), between=lambda x: b.call("Sigmoid", x))
    kill(model, "first", [1])
    check(model, {"first.weight": (8, 3, 3, 3)})


def test_free_sizes_stay_free():
    b = Builder()
    shape = ("n", 3, "h", "w")
    x = b.conv(b.input(shape), 3, 8, name="first")
    sizes = b.call("Shape", x)
    parts = [b.call("Gather", sizes, b.literal(np.array(i, np.int64)), axis=0) for i in range(4)]
    flat = b.call("Mul", parts[2], parts[3])
    one = b.literal(np.array([0], np.int64))
    # the channels are written as a number, batch and space are computed
    target = b.call(
        "Concat",
        *(b.call("Unsqueeze", p, one) for p in (parts[0],)),
        b.literal(np.array([8], np.int64)),
        b.call("Unsqueeze", flat, one),
        axis=0,
    )
    x = b.call("Reshape", x, target)
    x = b.call("MatMul", b.literal(image(4, 8), "mix"), x)
    b.output(x)
    model = b.model()
    kill(model, "first", [0, 7])
    result = check(model, {"first.weight": (6, 3, 3, 3), "mix": (4, 6)})
    for feed in (image(1, 3, 5, 9), image(3, 3, 12, 7)):
        assert difference(run(model, {"x": feed}), run(result, {"x": feed})) < 1e-5


def test_sizes_without_a_name_are_not_the_same():
    model = two_layers(Builder(), shape=(None, 3, None, None))
    kill(model, "first", [1])
    result = check(model, {"first.weight": (7, 3, 3, 3)})
    assert result.graph.inputs[0].shape[1] == 3


def test_computed_sizes_follow_by_themselves():
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    sizes = b.call("Shape", x)
    halves = b.call(
        "Div",
        b.call("Slice", sizes, *(b.literal(np.array([i], np.int64)) for i in (1, 2))),
        b.literal(np.array([2], np.int64)),
    )
    both = b.call("Concat", halves, halves, axis=0)
    left, right = b.call("Split", x, both, outputs=2, axis=1)
    b.output(b.conv(b.call("Mul", left, right), 4, 2, name="second"), ("n", 2, 8, 8))
    model = b.model()
    kill(model, "first", [1, 5])
    result = check(model, {"first.weight": (6, 3, 3, 3), "second.weight": (2, 3, 3, 3)})
    assert not any("slim" in name for name in result.graph.initializers)


@pytest.mark.parametrize("kind", ["Transpose", "Cast", "Identity", "Constant"])
def test_weights_are_followed(kind):
    b = Builder()
    x = b.call("Flatten", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"))
    x = b.call("Gemm", x, b.weight(16, 512, name="hidden"), b.vector(16, "hidden.bias"), transB=1)
    x = b.call("Relu", x)
    if kind == "Transpose":
        weight = b.call("Transpose", b.weight(5, 16, name="last"), perm=[1, 0])
    elif kind == "Cast":
        weight = b.call("Cast", b.literal(image(16, 5).astype(np.float64), "last"), to=FLOAT)
    elif kind == "Identity":
        weight = b.call("Identity", b.weight(16, 5, name="last"))
    else:
        weight = b.call("Constant", value=onnx.numpy_helper.from_array(image(16, 5)))
    b.output(b.call("Add", b.call("MatMul", x, weight), b.vector(5)))
    model = b.model()
    zero(model, "hidden", [3, 4, 5])
    zero(model, "hidden.bias", [3, 4, 5])
    result = check(model, {"hidden": (13, 512), "hidden.bias": (13,)})
    if kind in ("Transpose", "Cast", "Identity"):
        assert shapes(result)["last"] == ((5, 13) if kind == "Transpose" else (13, 5))


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_either_way_round(a, b):
    g = Builder()
    x = g.input((16, "n") if a else ("n", 16))
    x = g.call("Gemm", x, g.weight(*(8, 16) if b else (16, 8), name="first"), g.vector(8, "bias"), transA=a, transB=b)
    g.output(g.call("Gemm", g.call("Relu", x), g.weight(*(3, 8) if b else (8, 3), name="second"), transB=b))
    model = g.model()
    zero(model, "first", [1, 6] if b else (slice(None), [1, 6]))
    zero(model, "bias", [1, 6])
    feeds = {"x": image(*(16, 4) if a else (4, 16))}
    check(model, {"first": (6, 16) if b else (16, 6), "second": (3, 6) if b else (6, 3), "bias": (6,)}, feeds)


def test_old_files_list_their_weights_as_inputs():
    model = two_layers(Builder(9))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    kill(model, "first", [1])
    result = check(model, {"first.weight": (7, 3, 3, 3)})
    assert {tuple(v.shape) for v in result.graph.inputs} >= {(7, 3, 3, 3), (4, 7, 3, 3)}


def test_a_literal_that_may_be_overridden_stays():
    model = two_layers(Builder())
    model.graph.input.append(onnx.helper.make_tensor_value_info("second.weight", FLOAT, (4, 8, 3, 3)))
    kill(model, "first", [1])
    check(model, {"first.weight": (8, 3, 3, 3), "second.weight": (4, 8, 3, 3)})


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dequantize(signed, per_channel):
    b, kind, point = Builder(), np.int8 if signed else np.uint8, 3 if signed else 131
    low, high = (-127, 128) if signed else (0, 256)

    def quantized(x):
        scale, zero_point = b.literal(np.float32(0.05)), b.literal(np.array(point, kind))
        return b.call("DequantizeLinear", b.call("QuantizeLinear", x, scale, zero_point), scale, zero_point)

    def conv(x, name, inputs, outputs):
        weight = b.literal(b.rng.integers(low, high, (outputs, inputs, 3, 3)).astype(kind), f"{name}.q")
        sizes = (outputs,) if per_channel else ()
        scale = b.literal(np.full(sizes, 0.002, np.float32), f"{name}.scale")
        zero_point = b.literal(np.full(sizes, point if not signed else 0, kind), f"{name}.zero")
        weight = b.call("DequantizeLinear", weight, scale, zero_point, **({"axis": 0} if per_channel else {}))
        bias = b.literal(b.rng.integers(-999, 999, outputs).astype(np.int32), f"{name}.b")
        bias = b.call("DequantizeLinear", bias, b.literal(np.float32(1e-4)))
        return b.call("Conv", x, weight, bias, pads=[1] * 4)

    x = conv(quantized(b.input(("n", 3, 8, 8))), "first", 3, 8)
    x = quantized(b.call("Relu", quantized(x)))
    b.output(conv(x, "second", 8, 4))
    model = b.model()
    zero(model, "first.q", [2, 5], 0 if signed else point)
    zero(model, "first.b", [2, 5])
    sizes = {"first.q": (6, 3, 3, 3), "first.b": (6,), "second.q": (4, 6, 3, 3)}
    if per_channel:
        sizes |= {"first.scale": (6,), "first.zero": (6,), "second.scale": (4,)}
    result = slimmed(model)
    assert {name: shapes(result)[name] for name in sizes} == sizes
    assert difference(run(model, X), run(result, X)) < 1e-5


def test_integer_operators():
    b, point = Builder(), 121
    scale = lambda value: b.literal(np.float32(value))  # noqa: E731
    x_scale, x_zero = scale(0.04), b.literal(np.uint8(128))
    x = b.call("QuantizeLinear", b.input(("n", 3, 8, 8)), x_scale, x_zero)

    def conv(x, before, after, name, inputs, outputs):
        weight = b.literal(b.rng.integers(-127, 128, (outputs, inputs, 3, 3)).astype(np.int8), f"{name}.q")
        scales = b.literal(np.full(outputs, 0.004, np.float32), f"{name}.scale")
        bias = b.literal(b.rng.integers(-99, 99, outputs).astype(np.int32), f"{name}.b")
        zeros = b.literal(np.zeros(outputs, np.int8), f"{name}.zero")
        return b.call("QLinearConv", x, *before, weight, scales, zeros, *after, bias, pads=[1] * 4)

    middle, last = (scale(0.05), b.literal(np.uint8(point))), (scale(0.1), b.literal(np.uint8(100)))
    x = conv(x, (x_scale, x_zero), middle, "first", 3, 8)
    x = b.call("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = conv(x, middle, last, "second", 8, 4)
    b.output(b.call("DequantizeLinear", x, *last))
    model = b.model()
    zero(model, "first.q", [0, 3])
    zero(model, "first.b", [0, 3])
    result = slimmed(model)
    assert shapes(result)["first.q"] == (6, 3, 3, 3)
    assert shapes(result)["second.q"] == (4, 6, 3, 3)
    assert shapes(result)["first.scale"] == (6,)
    assert difference(run(model, X, optimize=True), run(result, X, optimize=True)) == 0


def test_another_zero_point_than_was_written_is_no_zero():
    b = Builder()
    scale, one, other = b.literal(np.float32(0.05)), b.literal(np.uint8(100)), b.literal(np.uint8(90))
    model = two_layers(
        b, between=lambda x: b.call("DequantizeLinear", b.call("QuantizeLinear", x, scale, one), scale, other)
    )
    kill(model, "first", [1])
    check(model, {"first.weight": (8, 3, 3, 3)})


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("state", ["none", "zeros"])
def test_hidden_units(kind, both, state):
    gates, directions, units = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], 1 + both, 6
    b = Builder()
    x = b.input(("t", "n", 5))
    inputs = [x, b.weight(directions, gates * units, 5, name="W"), b.weight(directions, gates * units, units, name="R")]
    inputs.append(b.literal(image(directions, 2 * gates * units), "B"))
    if state == "zeros":
        size = b.call(
            "Concat",
            b.literal(np.array([directions], np.int64)),
            b.call("Slice", b.call("Shape", x), *(b.literal(np.array([i], np.int64)) for i in (1, 2))),
            b.literal(np.array([units], np.int64)),
            axis=0,
        )
        inputs += ["", b.call("ConstantOfShape", size)]
    direction = {"direction": "bidirectional" if both else "forward"}
    y = b.call(kind, *inputs, outputs=2, hidden_size=units, **direction)[0]
    y = b.call("Transpose", y, perm=[0, 2, 1, 3])
    y = b.call("Reshape", y, b.literal(np.array([0, 0, -1], np.int64)))
    b.output(b.call("MatMul", y, b.weight(directions * units, 3, name="last")))
    model = b.model()
    dead = [1, 4]
    for name, times in (("W", gates), ("R", gates), ("B", 2 * gates)):
        for gate in range(times):
            zero(model, name, (slice(None), [gate * units + d for d in dead]))
    sizes = {"W": (directions, gates * 4, 5), "R": (directions, gates * 4, 4), "last": (directions * 4, 3)}
    result = check(model, sizes, {"x": image(7, 2, 5)})
    node = next(node for node in result.graph if node.op_type == kind)
    assert node.attributes["hidden_size"].as_int() == 4


def test_inputs_of_a_recurrent_layer():
    b = Builder()
    x = b.call("Relu", b.call("MatMul", b.input(("t", "n", 5)), b.weight(5, 8, name="first")))
    y = b.call("LSTM", x, b.weight(1, 16, 8, name="W"), b.weight(1, 16, 4, name="R"), outputs=2, hidden_size=4)[0]
    b.output(y)
    model = b.model()
    zero(model, "first", (slice(None), [2]))
    check(model, {"first": (5, 7), "W": (1, 16, 7), "R": (1, 16, 4)}, {"x": image(3, 2, 5)})


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_bodies_stay_as_they_are(kind):
    b = Builder()
    x = b.call("Relu", b.conv(b.input((2, 3, 8, 8)), 3, 8, name="first"))
    info = onnx.helper.make_tensor_value_info
    if kind == "If":
        body = [
            onnx.helper.make_graph(
                [onnx.helper.make_node(op, [x], [f"{op}_out"])], op, [], [info(f"{op}_out", FLOAT, None)]
            )
            for op in ("Abs", "Neg")
        ]
        y = b.call("If", b.literal(np.array(True)), then_branch=body[0], else_branch=body[1])
    elif kind == "Loop":
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["v", x], ["v_out"]), onnx.helper.make_node("Identity", ["c"], ["c_out"])],
            "body",
            [info("i", INT64, ()), info("c", onnx.TensorProto.BOOL, ()), info("v", FLOAT, (2, 8, 8, 8))],
            [info("c_out", onnx.TensorProto.BOOL, ()), info("v_out", FLOAT, (2, 8, 8, 8))],
        )
        y = b.call("Loop", b.literal(np.array(2, np.int64)), "", x, body=body)
    else:
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["s", "e"], ["s_out"]), onnx.helper.make_node("Identity", ["s_out"], ["o"])],
            "body",
            [info("s", FLOAT, (8, 8, 8)), info("e", FLOAT, (8, 8, 8))],
            [info("s_out", FLOAT, (8, 8, 8)), info("o", FLOAT, (8, 8, 8))],
        )
        y = b.call("Scan", b.literal(np.zeros((8, 8, 8), np.float32)), x, outputs=2, body=body, num_scan_inputs=1)[1]
    y = b.call("Relu", b.conv(y, 8, 6, name="middle"))
    b.output(b.conv(y, 6, 4, name="last"))
    model = b.model()
    kill(model, "first", [1])
    kill(model, "middle", [2])
    result = ir.from_proto(model)
    removal = slim_model(result)
    assert removal.unknown[kind] == 1
    assert all("unknown sizes" in name for name in removal.unknown if name != kind)  # behind it, where it states none
    assert shapes(result)["first.weight"] == (8, 3, 3, 3)
    assert difference(run(model, X), run(result, X)) < 1e-6
    bodies = lambda m: [a.SerializeToString() for n in m.graph.node for a in n.attribute if a.HasField("g")]  # noqa: E731
    assert bodies(ir.to_proto(result)) == bodies(ir.to_proto(ir.from_proto(model)))


def test_unknown_operators_are_frozen_and_named():
    b = Builder()
    model = two_layers(b, between=lambda x: b.call("Blur", x, domain="my.domain"))
    kill(model, "first", [1])
    result = ir.from_proto(model)
    removal = slim_model(result)
    assert removal.unknown["my.domain.Blur"] == 1
    assert shapes(result)["first.weight"] == (8, 3, 3, 3)


def test_branches_of_zeros_end_where_they_join():
    b = Builder()
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="stem"))
    y = b.call("Relu", b.norm(b.conv(x, 8, 6, name="inner"), 6))
    y = b.conv(y, 6, 8, name="outer")
    y = b.call(
        "BatchNormalization", y, *(b.literal(np.zeros(8, np.float32)) for _ in range(2)), b.vector(8), b.vector(8)
    )
    b.output(b.conv(b.call("Relu", b.call("Add", x, y)), 8, 4, name="last"))
    model = b.model()
    result = check(model, {"stem.weight": (8, 3, 3, 3), "inner.weight": None, "outer.weight": None})
    assert sorted(node.op_type for node in result.graph) == ["Conv", "Conv", "Relu"]


def test_a_constant_branch_becomes_part_of_a_bias():
    b = Builder()
    x = b.input(("n", 3, 8, 8))
    y = b.conv(b.call("Relu", b.conv(x, 3, 6, name="inner")), 6, 8, name="outer")
    b.output(b.call("Relu", b.call("Add", b.conv(x, 3, 8, name="other"), y)))
    model = b.model()
    kill(model, "inner", slice(None))
    result = check(model, {"inner.weight": None, "other.weight": (8, 3, 3, 3)})
    assert [node.op_type for node in result.graph] == ["Conv", "Relu"]


def test_masking_a_quantized_weight_means_its_zero_point():
    b = Builder()
    weight = b.literal(b.rng.integers(0, 255, (8, 3, 3, 3)).astype(np.uint8), "q")
    weight = b.call("DequantizeLinear", weight, b.literal(np.float32(0.01)), b.literal(np.uint8(77)))
    x = b.call("Relu", b.call("Conv", b.input((2, 3, 8, 8)), weight))
    b.output(b.conv(x, 8, 4, name="second"))
    graph = trace_onnx(ir.from_proto(b.model()))
    assert graph.n_groups == 8
    mask_groups(graph, np.arange(8) == 3)
    masked = literal(ir.to_proto(graph.front_end.model), "q")
    assert (masked[3] == 77).all()
    assert not (masked[2] == 77).all()


def test_running_a_removal_again_changes_nothing():
    model = two_layers(Builder())
    kill(model, "first", [0, 1])
    result = ir.from_proto(model)
    removal = ChannelRemovalPass()
    assert removal(result).modified
    before = ir.to_proto(result).SerializeToString()
    assert not removal(result).modified
    assert ir.to_proto(result).SerializeToString() == before


def test_sizes_that_are_computed_with_stay():
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    width = b.call("Gather", b.call("Shape", x), b.literal(np.array(1, np.int64)), axis=0)
    x = b.call("Div", x, b.call("Sqrt", b.call("Cast", width, to=FLOAT)))
    b.output(b.conv(x, 8, 4, name="second"))
    model = b.model()
    kill(model, "first", [0, 1, 2])
    check(model, {"first.weight": (5, 3, 3, 3)})


def test_sizes_that_are_computed_with_stay_free_where_they_are():
    """A mean by hand: divided by the product of all sizes, of which the batch is free and the channels are cut."""
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    y = b.call("Div", x, b.call("Cast", b.call("Size", x), to=FLOAT))
    sizes = b.call("Shape", x)
    parts = [b.call("Gather", sizes, b.literal(np.array(i)), axis=0) for i in (0, 1)]
    z = b.call("Mul", x, b.call("Cast", b.call("Mul", *parts), to=FLOAT))
    b.output(b.conv(b.call("Add", y, z), 8, 4, name="second"))
    model = b.model()
    kill(model, "first", [0, 1, 2])
    for batch in (1, 2, 5):
        check(model, {"first.weight": (5, 3, 3, 3)}, {"x": image(batch, 3, 8, 8)})


def test_zeros_of_computed_size_follow():
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    x = b.call("Mul", x, b.call("ConstantOfShape", b.call("Shape", x), value=onnx.numpy_helper.from_array(ONE)))
    b.output(b.conv(x, 8, 4, name="second"))
    model = b.model()
    kill(model, "first", [0, 1, 2])
    for batch in (1, 2, 5):
        result = check(model, {"first.weight": (5, 3, 3, 3)}, {"x": image(batch, 3, 8, 8)})
        assert not any("kept" in name for name in result.graph.initializers)


def test_one_of_several_slices_is_selected():
    """q, k and v as slices of a stacked tensor, each picked by a number of no dimension."""
    b, width = Builder(), 6
    x = b.call("MatMul", b.input(("n", 5, 4)), b.weight(4, 3 * width, name="qkv"))
    x = b.call("Add", x, b.vector(3 * width, "bias"))
    x = b.call("Transpose", b.call("Reshape", x, b.literal(np.array([0, 0, 3, width]))), perm=[2, 0, 1, 3])
    q, k, v = (b.call("Gather", x, b.literal(np.array(i)), axis=0) for i in (0, 1, -1))
    scores = b.call("Softmax", b.call("MatMul", q, b.call("Transpose", k, perm=[0, 2, 1])), axis=2)
    b.output(b.call("MatMul", b.call("MatMul", scores, v), b.weight(width, 3, name="last")))
    model = b.model()
    gone = [at * width + channel for at in range(3) for channel in (1, 4)]
    zero(model, "qkv", (slice(None), gone))
    zero(model, "bias", gone)
    check(model, {"qkv": (4, 12), "bias": (12,), "last": (4, 3)}, {"x": image(2, 5, 4)})


@pytest.mark.parametrize(("start", "stop"), [(-1, -(2**31)), (7, -9), (5, 1), (-2, 2), (99, 0)])
def test_slices_backwards(start, stop):
    picked = range(8)[slice(start, None if stop < -8 else stop, -1)]
    b = Builder()
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"))
    back = b.call("Slice", x, *(b.literal(np.array([v])) for v in (start, stop, 1, -1)))
    x = b.call("Concat", b.conv(x, 8, 2), b.conv(back, len(picked), 2, name="back"), axis=1)
    b.output(b.conv(x, 4, 3, name="last"))
    model = b.model()
    kill(model, "first", [2, 3, 7])
    left = sum(channel not in (2, 3, 7) for channel in picked)
    check(model, {"first.weight": (5, 3, 3, 3), "back.weight": (2, left, 3, 3)})


def test_literals_of_a_slim_file_get_names_of_their_own():
    """Padding that was rewritten once is rewritten again, in the same file."""
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")
    x = b.call("Pad", x, b.literal(np.array([0, 1, 0, 0, 0, 2, 0, 0])), b.literal(np.float32(0.5)))
    b.output(b.conv(x, 11, 4, name="last"))
    model = b.model()
    for left in (10, 9):  # the last of the padded channels is not read any more, then the one before it
        zero(model, "last.weight", (slice(None), [-1]))
        model = ir.to_proto(check(model, {"first.weight": (8, 3, 3, 3), "last.weight": (4, left, 3, 3)}))


def test_what_a_value_of_unknown_size_depends_on_does_not_go_as_a_whole():
    """The layers before a sequence look like a branch that nobody reads."""
    b = Builder()
    x = b.conv(b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first")), 8, 4, name="second")
    first = b.call("SequenceAt", b.call("SequenceConstruct", x, x), b.literal(np.array(0, np.int64)))
    b.output(b.call("Add", first, first), None)
    graph = trace_onnx(ir.from_proto(b.model()))
    assert "SequenceConstruct" in graph.unknown
    assert [(group_set.name, len(group_set.groups), group_set.bypassed) for group_set in graph.sets] == [
        ("first", 8, False)
    ]

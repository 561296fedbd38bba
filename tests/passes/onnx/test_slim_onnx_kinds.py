"""Dead channels in quantized and recurrent layers."""

import numpy as np
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, literal, run, shapes, zero
from slimmed import X, check, kill, slimmed, two_layers

from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import mask_groups
from graphprune.passes.onnx.slim import slim_model


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


@pytest.mark.parametrize("form", ["heads", "no heads", "a cache"])
def test_attention_without_heads_or_with_a_cache_is_named(form):
    b, cached = Builder(23), form == "a cache"
    x = b.input(("n", 5, 8))
    parts = [b.call("MatMul", x, b.weight(8, 8, name=name)) for name in ("query", "key", "value")]
    if form == "no heads":
        x = b.call("Attention", *parts, q_num_heads=2, kv_num_heads=2)
    else:
        sizes, back = b.literal(np.array([0, 0, 2, 4])), b.literal(np.array([0, 0, 8]))
        parts = [b.call("Transpose", b.call("Reshape", x, sizes), perm=[0, 2, 1, 3]) for x in parts]
        past = [b.input(("n", 2, 3, 4), name) for name in ("past_key", "past_value")] if cached else []
        found = b.call("Attention", *parts, *([""] if cached else []), *past, outputs=3 if cached else 1)
        x = b.call("Reshape", b.call("Transpose", found[0] if cached else found, perm=[0, 2, 1, 3]), back)
    b.output(b.call("MatMul", x, b.weight(8, 4)))
    model = b.model(ir_version=11)
    zero(model, "query", (slice(None), [1, 5]))
    zero(model, "key", (slice(None), [1, 5]))
    result = ir.from_proto(model)
    done = slim_model(result)
    assert done.unknown == ({} if form == "heads" else {"Attention of this form": 1})
    assert shapes(result)["query"] == ((8, 6) if form == "heads" else (8, 8))


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

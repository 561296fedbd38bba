"""Dead channels in graphs of every kind are found without a plan, and what is left computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import FLOAT, INT64, Builder, difference, image, run, shapes, zero
from slimmed import ONE, X, check, kill, two_layers

from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.slim import ChannelRemovalPass, slim_model


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


@pytest.mark.parametrize("kind", ["max", "min", "where"])
def test_rectifiers_written_with_numbers_keep_zero_at_zero(kind):
    b = Builder()
    none, six = (b.literal(np.float32(n)) for n in (0, 6))
    write = {
        "max": lambda x: b.call("Max", none, x),
        "min": lambda x: b.call("Min", x, six),
        "where": lambda x: b.call("Where", b.call("Greater", x, none), x, none),
    }
    model = two_layers(b, between=write[kind])
    kill(model, "first", [1, 5])
    check(model, {"first.weight": (6, 3, 3, 3), "second.weight": (4, 6, 3, 3)})


@pytest.mark.parametrize(("sizes", "axes"), [([12, 12], [2, 3]), ([12, 8, 12], [3, 1, 2]), ([2, 8, 12, 12], None)])
def test_a_resize_names_sizes_of_some_dimensions_or_of_all(sizes, axes):
    b = Builder()
    named = {} if axes is None else {"axes": axes}
    target = b.literal(np.array(sizes))
    model = two_layers(b, between=lambda x: b.call("Resize", x, "", "", target, mode="nearest", **named))
    kill(model, "first", [1, 5])
    check(model, {"first.weight": (6, 3, 3, 3), "second.weight": (4, 6, 3, 3)})


def test_channels_of_a_table_that_the_input_indexes_go():
    b = Builder()
    x = b.call("Gather", b.weight(10, 8, name="table"), b.input(("n", 16), dtype=INT64))
    x = b.call("Relu", b.call("MatMul", x, b.weight(8, 6, name="first")))
    b.output(b.call("MatMul", x, b.weight(6, 4, name="second")), ("n", 16, 4))
    model = b.model()
    zero(model, "table", (slice(None), [3]))
    zero(model, "first", (slice(None), [1, 2]))
    feeds = {"x": np.random.default_rng(0).integers(0, 10, (2, 16))}
    check(model, {"table": (10, 7), "first": (7, 4), "second": (4, 4)}, feeds)


def test_a_branch_goes_where_the_input_chooses_its_bias():
    """What is looked up stays: it is no constant that could be computed ahead."""
    b = Builder()
    x, label = b.input(("n", 3, 8, 8)), b.input(("n",), "label", dtype=INT64)
    stem = b.call("Relu", b.conv(x, 3, 8, name="stem"))
    inner = b.conv(b.call("Relu", b.conv(stem, 8, 6, name="first")), 6, 8, name="second")
    bias = b.call("Gather", b.weight(10, 8, name="table"), label)
    bias = b.call("Unsqueeze", bias, b.literal(np.array([2, 3])))
    y = b.call("Add", stem, b.call("Relu", b.call("Add", inner, bias)))
    b.output(b.conv(y, 8, 4, name="head"), ("n", 4, 8, 8))
    model = b.model()
    kill(model, "first", slice(None))
    feeds = {"x": image(2, 3, 8, 8), "label": np.array([1, 7])}
    check(model, {"table": (10, 8), "head.weight": (4, 8, 3, 3)}, feeds)


def test_random_numbers_are_never_known():
    b = Builder()
    x = b.input(("n", 3, 8, 8))
    b.output(b.call("Add", x, b.call("RandomNormalLike", b.literal(np.zeros((3, 1, 1), np.float32)))), ("n", 3, 8, 8))
    front = trace_onnx(ir.from_proto(b.model())).front_end
    noise = next(value for value in front.env if value.name.startswith("randomnormallike"))
    assert not front.env[noise].constant
    assert noise not in front.numbers


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
    (reason,) = {f.reason for f in trace_onnx(ir.from_proto(model)).frozen if "second.weight" in f.parameters}
    assert reason == "may be replaced at run time: an input of the graph"


def test_zeros_that_may_be_overridden_are_added():
    b = Builder()
    zeros = b.literal(np.zeros((8, 1, 1), np.float32), "shift")
    model = two_layers(b, between=lambda x: b.call("Add", x, zeros))
    model.graph.input.append(onnx.helper.make_tensor_value_info("shift", FLOAT, (8, 1, 1)))
    check(model, {"shift": (8, 1, 1)}, {**X, "shift": image(8, 1, 1)})


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

"""Channels run into the bodies of If, Loop and Scan and out of them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import FLOAT, INT64, Builder, difference, image, literal, run, zero
from onnx import TensorProto, helper, numpy_helper
from slimmed import check, kill, slimmed

from graphprune.passes.onnx.analyze import trace_onnx

BOOL = TensorProto.BOOL
info, node = helper.make_tensor_value_info, helper.make_node


def body(name: str, nodes, inputs=(), outputs=(), literals=()) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, list(inputs), list(outputs), list(literals))


def kernel(name: str, *shape: int, seed: int = 0, dead=()) -> onnx.TensorProto:
    array = image(*shape, seed=seed) / np.sqrt(np.prod(shape[1:]))
    array[list(dead)] = 0
    return numpy_helper.from_array(array.astype(np.float32), name)


def branch(x: str, size: int, name: str, outputs: int = 6, dead=()) -> onnx.GraphProto:
    """A convolution; its values have the same names in every branch."""
    weight = kernel("inner", outputs, 8, size, size, seed=size, dead=dead)
    nodes = [node("Conv", [x, "inner"], ["c"], pads=[size // 2] * 4), node("Relu", ["c"], ["out"])]
    return body(name, nodes, outputs=[info("out", FLOAT, [None] * 4)], literals=[weight])


def inside(model: ir.Model) -> list[tuple[int, ...]]:
    """Sizes of the literals of all bodies."""
    return sorted(
        tuple(value.const_value.shape.numpy())
        for graph in model.graph.subgraphs()
        for value in graph.initializers.values()
    )


def sandwich(b: Builder, between, channels: int = 8, shape=(2, 3, 8, 8)) -> onnx.ModelProto:
    """Something between two convolutions."""
    x = b.call("Relu", b.conv(b.input(shape), 3, 8, name="first"))
    b.output(b.conv(between(x), channels, 4, name="last"), (2, 4, 8, 8))
    return b.model()


def flag(b: Builder) -> str:
    """Which branch it is depends on the input."""
    return b.call("Greater", b.call("ReduceMax", "x", keepdims=0), b.literal(np.float32(0.3)))


def elementwise(b: Builder, x: str, kind: str) -> str:
    if kind == "If":
        parts = [body(op, [node(op, [x], ["out"])], outputs=[info("out", FLOAT, [None] * 4)]) for op in ("Abs", "Neg")]
        return b.call("If", flag(b), then_branch=parts[0], else_branch=parts[1])
    if kind == "Loop":
        nodes = [node("Add", ["v", x], ["w"]), node("Identity", ["go"], ["on"])]
        ins = [info("i", INT64, ()), info("go", BOOL, ()), info("v", FLOAT, [None] * 4)]
        loop = body("loop", nodes, ins, [info("on", BOOL, ()), info("w", FLOAT, [None] * 4)])
        return b.call("Loop", b.literal(np.array(2)), b.literal(np.array(True)), x, body=loop)
    nodes = [node("Add", ["s", "e"], ["t"]), node("Tanh", ["t"], ["o"])]
    ins, outs = ([info(name, FLOAT, (8, 8, 8)) for name in names] for names in ("se", "to"))
    start = b.literal(np.zeros((8, 8, 8), np.float32))
    return b.call("Scan", start, x, outputs=2, body=body("scan", nodes, ins, outs), num_scan_inputs=1)[1]


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_dead_channels_run_through(kind):
    model = sandwich(b := Builder(), lambda x: elementwise(b, x, kind))
    kill(model, "first", [1, 6])
    check(model, {"first.weight": (6, 3, 3, 3), "last.weight": (4, 6, 3, 3)})
    assert trace_onnx(ir.from_proto(model)).unknown == {}


@pytest.mark.parametrize(("dead", "left"), [(([1, 2], [2, 1]), 4), (([1, 2], [1]), 5), (([1], []), 6)])
def test_what_is_dead_in_both_branches_goes(dead, left):
    b = Builder()

    def switched(x):
        parts = [branch(x, size, f"b{size}", dead=which) for size, which in zip((1, 3), dead, strict=True)]
        return b.call("If", flag(b), then_branch=parts[0], else_branch=parts[1])

    model = sandwich(b, switched, 6)
    kill(model, "first", [3])
    result = check(model, {"first.weight": (7, 3, 3, 3), "last.weight": (4, left, 3, 3)})
    assert inside(result) == [(left, 7, 1, 1), (left, 7, 3, 3)]


def recurrent(b: Builder, x: str, start: str, activation: str, channels: int = 8) -> str:
    """A convolution of the state and of what is outside, three times."""
    nodes = [
        node("Concat", ["v", x], ["both"], axis=1),
        node("Conv", ["both", "inner"], ["c"], pads=[1] * 4),
        node(activation, ["c"], ["w"]),
        node("Identity", ["go"], ["on"]),
    ]
    ins = [info("i", INT64, ()), info("go", BOOL, ()), info("v", FLOAT, (2, channels, 8, 8))]
    outs = [info("on", BOOL, ()), info("w", FLOAT, (2, channels, 8, 8))]
    weight = kernel("inner", channels, channels + 8, 3, 3, dead=[2])
    loop = body("loop", nodes, ins, outs, [weight])
    return b.call("Loop", b.literal(np.array(3)), b.literal(np.array(True)), start, body=loop)


@pytest.mark.parametrize(("activation", "left"), [("Tanh", 4), ("Sigmoid", 5)])
def test_the_state_of_a_loop_is_dead_if_it_starts_and_stays_so(activation, left):
    """The kernel gives nothing in channel 2, where the state starts at zero; Sigmoid makes 0.5 of that."""
    b = Builder()
    start = b.literal(image(2, 5, 8, 8), "start")
    model = sandwich(b, lambda x: recurrent(b, x, start, activation, 5), 5)
    zero(model, "start", (slice(None), [2]))
    kill(model, "first", [0])
    sizes = {"first.weight": (7, 3, 3, 3), "start": (2, left, 8, 8), "last.weight": (4, left, 3, 3)}
    assert inside(check(model, sizes)) == [(left, left + 7, 3, 3)]


def test_a_state_that_starts_alive_is_not_dead():
    b = Builder()
    model = sandwich(b, lambda x: recurrent(b, x, b.literal(image(2, 5, 8, 8), "start"), "Tanh", 5), 5)
    check(model, {"start": (2, 5, 8, 8), "last.weight": (4, 5, 3, 3)})


def test_a_state_that_starts_as_an_input_keeps_its_channels():
    b = Builder()
    state = b.input((2, 5, 8, 8), "s")
    model = sandwich(b, lambda x: recurrent(b, x, state, "Tanh", 5), 5)
    kill(model, "first", [0])
    check(model, {"first.weight": (7, 3, 3, 3)}, {"x": image(2, 3, 8, 8), "s": image(2, 5, 8, 8)})
    reasons = [frozen.reason for frozen in trace_onnx(ir.from_proto(model)).frozen]
    assert any("meets a tensor that cannot be cut: Loop" in reason for reason in reasons)


def test_a_body_inside_a_body():
    b = Builder()

    def nested(x):
        parts = [branch("v", size, f"b{size}", 8, dead=[4]) for size in (1, 3)]
        nodes = [
            node("Less", ["i", "limit"], ["small"]),
            node("If", ["small"], ["w"], then_branch=parts[0], else_branch=parts[1]),
            node("Identity", ["go"], ["on"]),
        ]
        ins = [info("i", INT64, ()), info("go", BOOL, ()), info("v", FLOAT, (2, 8, 8, 8))]
        limit = numpy_helper.from_array(np.array(1), "limit")
        loop = body("loop", nodes, ins, [info("on", BOOL, ()), info("w", FLOAT, (2, 8, 8, 8))], [limit])
        return b.call("Loop", b.literal(np.array(2)), b.literal(np.array(True)), x, body=loop)

    model = sandwich(b, nested)
    kill(model, "first", [4])
    result = check(model, {"first.weight": (7, 3, 3, 3), "last.weight": (4, 7, 3, 3)})
    assert inside(result) == [(), (7, 7, 1, 1), (7, 7, 3, 3)]


@pytest.mark.parametrize("kind", ["growing", "unlike"])
def test_bodies_of_unknown_sizes_keep_what_they_touch(kind):
    """A state that gets wider each time; branches that give other widths."""
    b = Builder()

    def odd(x):
        if kind == "unlike":
            parts = [branch(x, size, f"b{size}", outputs) for size, outputs in ((1, 6), (3, 5))]
            y = b.call("If", flag(b), then_branch=parts[0], else_branch=parts[1])
        else:
            nodes = [node("Concat", ["v", x], ["w"], axis=1), node("Identity", ["go"], ["on"])]
            ins = [info("i", INT64, ()), info("go", BOOL, ()), info("v", FLOAT, [None] * 4)]
            loop = body("loop", nodes, ins, [info("on", BOOL, ()), info("w", FLOAT, [None] * 4)])
            y = b.call("Loop", b.literal(np.array(1)), b.literal(np.array(True)), x, body=loop)
        y = b.call("ReduceMean", y, b.literal(np.array([1])))
        return b.conv(y, 1, 6, name="middle")

    model = sandwich(b, odd, 6)
    kill(model, "first", [1])
    kill(model, "middle", [2])
    before = literal(model, "first.weight")
    result = slimmed(model)
    assert literal(ir.to_proto(result), "first.weight").shape == before.shape
    feeds = {"x": image(2, 3, 8, 8)}
    assert difference(run(model, feeds), run(result, feeds)) < 1e-5
    graph = trace_onnx(ir.from_proto(model))
    assert ("Loop" if kind == "growing" else "If") in " ".join(graph.unknown)


def test_a_dead_branch_inside_a_body_is_folded():
    """A residual block in a branch, of whose inner channels none is left."""
    b = Builder()

    def switched(x):
        weights = [kernel("up", 4, 8, 1, 1, dead=range(4)), kernel("down", 8, 4, 1, 1)]
        nodes = [
            node("Conv", [x, "up"], ["u"]),
            node("Relu", ["u"], ["r"]),
            node("Conv", ["r", "down"], ["d"]),
            node("Add", [x, "d"], ["a"]),
            node("Tanh", ["a"], ["out"]),
        ]
        parts = [
            body("block", nodes, outputs=[info("out", FLOAT, [None] * 4)], literals=weights),
            body("plain", [node("Abs", [x], ["out"])], outputs=[info("out", FLOAT, [None] * 4)]),
        ]
        return b.call("If", flag(b), then_branch=parts[0], else_branch=parts[1])

    result = check(sandwich(b, switched), {"first.weight": (8, 3, 3, 3)})
    assert inside(result) == []
    assert {n.op_type for graph in result.graph.subgraphs() for n in graph} == {"Tanh", "Abs"}


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_what_bodies_do_counts_for_nothing_and_is_said(kind):
    """How often they run is not known."""
    graph = trace_onnx(ir.from_proto(sandwich(b := Builder(), lambda x: elementwise(b, x, kind))))
    outside = 8 * 3 * 9 * 64 + 4 * 8 * 9 * 64
    assert graph.cost.macs(graph.all_kept()) == outside
    assert [kind in said for said in graph.uncounted] == [True]

"""What follows the last layers, and the part of it that selects."""

import numpy as np
import pytest
from builder import INT64, Builder, run
from onnx import TensorProto

from graphprune.passes.onnx.decoding import DISCRETE, ROWS, decoding_nodes, find_selection, selecting_part


def detector(seed=0, extra=None):
    """A convolution each for boxes and scores, NonMaxSuppression, and a row of boxes for every index it gives."""
    b = Builder(17, seed)
    x = b.call("Relu", b.conv(b.input((1, 3, 8, 8)), 3, 8))
    boxes = b.call("Reshape", b.conv(x, 8, 4, 1), b.literal(np.array([0, 4, -1])))
    boxes = b.call("Transpose", boxes, perm=[0, 2, 1])
    scores = b.call("Sigmoid", b.call("Reshape", b.conv(x, 8, 2, 1), b.literal(np.array([0, 2, -1]))))
    if extra is not None:
        scores = extra(b, scores)
    limits = [np.array([5]), np.float32([0.5]), np.float32([0.2])]
    chosen = b.call("NonMaxSuppression", boxes, scores, *map(b.literal, limits))
    at = b.call("Gather", chosen, b.literal(np.array([0, 2])), axis=1)
    b.output(b.call("GatherND", boxes, at), ("n", 4))
    b.output(b.call("Identity", chosen), ("n", 3), INT64)
    return b.model(), boxes, scores


def test_a_selection_begins_where_rows_are_picked_and_knows_what_enters():
    model, boxes, scores = detector()
    found = find_selection(model.graph)
    assert found.fronts == (boxes, scores)
    assert [kind[1:] for kind in found.kinds] == ["NonMaxSuppression", "Gather", "GatherND"]  # a copy does not count
    assert found.outputs == tuple(value.name for value in model.graph.output)
    assert found.of(boxes) == "NonMaxSuppression"
    assert find_selection(model.graph, ROWS).fronts == found.fronts


def test_the_order_of_branches_in_the_file_is_of_no_account():
    model, *_ = detector()
    shuffled, _, _ = detector()
    nodes = list(shuffled.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Identity")
    del shuffled.graph.node[:]
    shuffled.graph.node.extend([*nodes[: at - 2], nodes[at], *nodes[at - 2 : at]])
    one, other = find_selection(model.graph), find_selection(shuffled.graph)
    assert (one.kinds, one.enters) == (other.kinds, other.enters)


def test_what_layers_follow_selects_nothing_for_the_outputs():
    b = Builder(17)
    x = b.conv(b.input((1, 3, 8, 8)), 3, 4)
    x = b.call("Where", b.call("Greater", x, b.literal(np.float32(0))), x, b.literal(np.float32(0)))
    b.output(b.conv(x, 4, 2), (1, 2, 8, 8))
    assert find_selection(b.model().graph) is None


@pytest.mark.parametrize(
    ("kind", "kinds"), [("ArgMax", DISCRETE), ("Greater", DISCRETE), ("ReduceMax", DISCRETE), ("TopK", ROWS)]
)
def test_operators_whose_result_jumps_or_is_one_of_many(kind, kinds):
    b = Builder(17)
    x = b.call("Flatten", b.conv(b.input((1, 3, 4, 4)), 3, 4))
    made = {
        "ArgMax": lambda: b.call("Cast", b.call("ArgMax", x, axis=1), to=TensorProto.FLOAT),
        "Greater": lambda: b.call("Where", b.call("Greater", x, b.literal(np.float32(0))), x, x),
        "ReduceMax": lambda: b.call("ReduceMax", x, axes=[1]),
        "TopK": lambda: b.call("TopK", x, b.literal(np.array([2])), outputs=2)[0],
    }
    b.output(made[kind]())
    found = find_selection(b.model().graph, kinds)
    assert found.fronts == (x,)
    assert (find_selection(b.model().graph, ROWS) is None) == (kinds is DISCRETE)


def test_sizes_are_no_numbers_and_those_of_what_is_picked_are():
    b = Builder(17)
    x = b.call("Flatten", b.conv(b.input(("n", 3, 4, 4)), 3, 4))
    picked = b.call("NonZero", b.call("Relu", x))
    count = b.call("Gather", b.call("Shape", picked), b.literal(np.array([1])))
    rows = b.call("Gather", b.call("Shape", x), b.literal(np.array([0])))
    b.output(b.call("Concat", count, rows, axis=0), (2,), INT64)
    found = find_selection(b.model().graph, ROWS)
    assert [kind[1:] for kind in found.kinds] == ["NonZero", "Shape", "Gather", "Concat"]
    assert found.sizes == (rows,)


def test_the_decoding_is_what_follows_the_layers():
    model, *_ = detector()
    kinds = [node.op_type for node in decoding_nodes(model.graph, model.graph.output[0].name)]
    assert kinds == ["Reshape", "Transpose", "Reshape", "Sigmoid", "NonMaxSuppression", "Gather", "GatherND"]
    b = Builder(17)
    b.output(b.conv(b.input((1, 3, 8, 8)), 3, 4), (1, 4, 8, 8))
    assert decoding_nodes(b.model().graph, b.model().graph.output[0].name) == []


def body_of_an_if(b, scores):
    """The scores as an If gives them that reads them from outside."""
    inner = Builder(17, 1)
    inner.output(inner.call("Mul", scores, inner.literal(np.float32(0.5))), (1, 2, 64))
    other = Builder(17, 2)
    other.output(other.call("Identity", scores), (1, 2, 64))
    condition = b.call("Greater", b.call("ReduceMax", scores, keepdims=0), b.literal(np.float32(0.1)))
    return b.call("If", condition, then_branch=inner.model().graph, else_branch=other.model().graph)


@pytest.mark.parametrize("extra", [None, body_of_an_if])
def test_a_selection_can_be_run_alone(extra):
    model, *_ = detector(extra=extra)
    found = find_selection(model.graph)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    whole = run(model, {"x": x})
    watched = type(model)()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    names = (*found.fronts, *found.sizes)
    watched.graph.output.extend(type(model.graph.output[0] if model.graph.output else None)(name=n) for n in names)
    values = dict(zip(names, run(watched, {"x": x}), strict=True))
    part = selecting_part(found, model, {name: value.dtype for name, value in values.items()})
    for a, b in zip(run(part, values), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(whole[0]) > 0

"""Detectors that find something, or nothing: what they are compared by."""

import numpy as np
import onnx
import pytest
from builder import INT64, Builder
from onnx import numpy_helper

from graphprune.errors import VerificationError
from graphprune.report.summary import render_comparison
from graphprune.verification.selection import pair_selections, random_values
from graphprune.verification.verify import compare, require_equal

X = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)


def detector(seed=0, bias=0.0, threshold=0.3, overlap=0.5, scale=(1.0, 1.0, 1.0, 1.0), rename=False):
    """Boxes and scores of a grid, picked by NonMaxSuppression; with a bias far below zero it finds nothing."""
    b = Builder(17, seed)
    x = b.call("Relu", b.conv(b.input(("n", 3, 16, 16)), 3, 8, strides=[4, 4]))
    boxes = b.call("Sigmoid", b.call("Reshape", b.conv(x, 8, 4, 1), b.literal(np.array([0, 4, -1]))))
    boxes = b.call("Transpose", boxes, perm=[0, 2, 1])
    scores = b.call("Add", b.conv(x, 8, 2, 1), b.literal(np.float32(bias), "bias"))
    scores = b.call("Sigmoid", b.call("Reshape", scores, b.literal(np.array([0, 2, -1]))))
    limits = [np.array([6]), np.float32([overlap]), np.float32([threshold])]
    chosen = b.call("NonMaxSuppression", boxes, scores, *map(b.literal, limits))
    at = b.call("Gather", chosen, b.literal(np.array([0, 2])), axis=1)
    picked = b.call("Mul", b.call("GatherND", boxes, at), b.literal(np.float32(scale)))
    for name, kept, dtype in ((picked, "found", onnx.TensorProto.FLOAT), (chosen, "chosen", INT64)):
        b.nodes.append(onnx.helper.make_node("Identity", [name], [kept]))
        b.output(kept, None, dtype)
    model = b.model()
    if rename:
        names = {
            name: f"v{name}" for node in model.graph.node for name in node.output if name not in ("found", "chosen")
        }
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        del model.graph.value_info[:]
    return model.SerializeToString()


SILENT = {"bias": -9.0}


def test_two_detectors_that_find_nothing_are_told_apart_by_what_they_select_from():
    result = compare(detector(0, **SILENT), detector(1, **SILENT), X)
    assert not result.equal
    assert [output.compared for output in result.outputs] == [False, False]
    assert {found.equal for found in result.inside} == {False}
    with pytest.raises(VerificationError, match=r"inside, '.*\(enters NonMaxSuppression\)' differs by"):
        require_equal(detector(0, **SILENT), detector(1, **SILENT), X)


@pytest.mark.parametrize("rename", [False, True])
def test_the_same_detector_that_finds_nothing_passes_and_what_was_compared_is_said(rename):
    result = compare(detector(**SILENT), detector(rename=rename, **SILENT), X)
    assert result.equal
    assert [(output.equal, output.proven) for output in result.outputs] == [(False, True)] * 2
    assert len(result.inside) == 2
    table = render_comparison(result)
    assert table.count("not compared") == 3
    assert "holds nothing" in table


@pytest.mark.parametrize("change", [{"threshold": 0.6}, {"overlap": 0.9}, {"scale": (1.0, 1.0, 1.0, 1.05)}])
@pytest.mark.parametrize("found", [SILENT, {}])
def test_selections_that_differ_are_told_apart_though_nothing_is_found(change, found):
    result = compare(detector(**found), detector(**found, **change), X)
    assert not result.equal
    assert all(value.equal for value in result.inside)


def test_that_nothing_was_compared_is_said_where_nothing_can_be():
    b = Builder(17)
    x = b.conv(b.input(("n", 3, 16, 16)), 3, 2)
    b.output(b.call("Slice", x, *(b.literal(np.array([i])) for i in (0, 0, 1))), ("n", 0, 16, 16))
    model = b.model().SerializeToString()
    result = compare(model, model, X)
    assert not result.equal
    assert "NOT COMPARED" in render_comparison(result)
    with pytest.raises(VerificationError, match=r"holds nothing on the 4 samples.*give images or arrays on which"):
        require_equal(model, model, X)


def best(nudge=0.0):
    """The three best of eight scores, two of which are next to equal, and their places."""
    b = Builder(17)
    x = b.input(("n", 8))
    y = b.call("Add", x, b.literal(np.float32([0, nudge, 0, 0, 0, 0, 0, 0])))
    y = b.call("Mul", b.call("Gemm", y, b.literal(np.eye(8, dtype=np.float32))), b.literal(np.float32(2)))
    values, at = b.call("TopK", y, b.literal(np.array([3])), outputs=2)
    b.output(values, ("n", 3))
    b.output(at, ("n", 3), INT64)
    return b.model().SerializeToString()


def test_an_order_that_turns_over_for_rounding_is_no_difference():
    x = np.float32([[0.5, 0.5, 0.1, 0.9, 0, 0, 0, 0]])
    result = compare(best(), best(1e-7), x)
    assert result.equal
    assert result.turned_over == 1
    assert "turns over for rounding alone" in render_comparison(result)
    assert not compare(best(), best(1e-3), x).equal


def test_two_numbers_of_detections_are_never_equal():
    """What other tools give: rows of boxes up to 640 with their scores, as many as there are."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[n,85,20] x) => (float[m,85] y) <float[85] w> {
        all = Transpose<perm = [0, 2, 1]>(x) rows = Mul(all, w) best = ReduceMax<axes = [2], keepdims = 0>(x)
        flat = Constant<value = int64[2] {-1, 85}>() table = Reshape(rows, flat)
        score = Constant<value_ints = [4]>() column = Gather<axis = 1>(table, score)
        limit = Constant<value_float = 0.25>() above = Greater(column, limit)
        one = Constant<value_ints = [1]>() kept = Squeeze(above, one) y = Compress<axis = 0>(table, kept) }"""
    one, other = onnx.parser.parse_model(text), onnx.parser.parse_model(text)
    weight = np.float32([640] * 4 + [1] * 81)
    for model, factor in ((one, 1.0), (other, 0.98)):
        del model.graph.value_info[:]
        array = weight.copy()
        array[4] = factor
        model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    x = np.random.default_rng(0).random((2, 85, 20)).astype(np.float32)
    result = compare(one.SerializeToString(), other.SerializeToString(), x)
    assert not result.equal
    assert result.agreement is None


def test_random_values_select_something_whatever_was_given():
    values = {
        "scores": np.full((1, 2, 30), 1e-6) + 0.9 * np.eye(2, 30),
        "boxes": np.ones((1, 30, 4)),
        "sizes": np.array([30]),
    }
    draws = list(random_values(values, ["scores", "boxes"]))
    assert all(draw["scores"].min() >= 0 and draw["scores"].max() <= 1 for draw in draws)
    above = [int((draw["scores"] > 0.35).sum()) for draw in draws]
    assert max(above) > 30
    assert min(above) < 10
    assert any((draw["boxes"] < 0).any() for draw in draws)
    assert any((draw["boxes"] == 1).all() for draw in draws)
    assert all(draw["sizes"] is values["sizes"] for draw in draws)


def test_roles_go_by_names_and_where_these_differ_by_places():
    pair = pair_selections(detector(), detector(rename=True))
    assert pair.complete
    assert all(theirs == f"v{ours}" for ours, theirs in pair.fronts)
    assert pair.outputs == ("found", "chosen")
    assert pair_selections(detector(), detector()).fronts == pair_selections(detector(), detector(1)).fronts
    assert pair_selections(detector(), b"no model") is None or not pair_selections(detector(), b"no model").complete

"""Vectors that exporters store once because they are equal couple nothing; weights that are tied do."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, numpy_helper, run, shapes, zero
from slimmed import X, check, kill, slimmed

from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.shared import merge_copies, split_shared


def literal_of(b: Builder, array: np.ndarray, form: str) -> str:
    return b.call("Constant", value=numpy_helper.from_array(array)) if form == "node" else b.literal(array, "slope")


def rectified(b: Builder, form: str = "initializer") -> onnx.ModelProto:
    """Two layers whose slopes are one literal."""
    slope = literal_of(b, np.full((8, 1, 1), 0.25, np.float32), form)
    x = b.call("PRelu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"), slope)
    x = b.call("PRelu", b.conv(x, 8, 8, name="second"), slope)
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    return b.model()


@pytest.mark.parametrize("form", ["initializer", "node"])
@pytest.mark.parametrize("dead", [([1, 2], []), ([1, 2], [5]), ([1, 2], [1, 2]), ([], [4])])
def test_layers_that_share_a_slope_lose_channels_of_their_own(form, dead):
    model = rectified(Builder(), form)
    for name, channels in zip(("first", "second"), dead, strict=True):
        kill(model, name, channels)
    left = [8 - len(channels) for channels in dead]
    sizes = {"first.weight": (left[0], 3, 3, 3), "second.weight": (left[1], left[0], 3, 3)}
    result = check(model, {**sizes, "last.weight": (4, left[1], 3, 3)})
    stored = [shape for name, shape in shapes(result).items() if name.startswith("slope")]
    assert form == "node" or sorted(stored) == sorted({(size, 1, 1) for size in left})
    assert ir.to_proto(result).ByteSize() < model.ByteSize()


@pytest.mark.parametrize("form", ["initializer", "node"])
def test_what_was_taken_apart_is_put_together_as_it_was(form):
    """Of a file in which nothing goes, nothing changes."""
    model = ir.from_proto(rectified(Builder(), form))
    before = ir.to_proto(model).SerializeToString()
    split_shared(model)
    assert [len(node.inputs[1].uses()) for node in model.graph if node.op_type == "PRelu"] == [1, 1]
    assert ir.to_proto(model).SerializeToString() != before
    merge_copies(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_parameters_are_counted_once():
    model = rectified(Builder())
    graph = trace_onnx(ir.from_proto(model))
    assert graph.cost.params(graph.all_kept()) == sum(np.prod(shape) for shape in shapes(model).values())
    assert [len(s.groups) for s in graph.sets] == [8, 8]


def test_a_bias_and_statistics_of_equal_numbers():
    """Zeros and ones that biases, batch norms and scales have in common."""
    b = Builder()
    zeros, ones = b.literal(np.zeros(8, np.float32), "zeros"), b.literal(np.ones(8, np.float32), "ones")
    x = b.input(("n", 3, 8, 8))
    for name, inputs in (("first", 3), ("second", 8)):
        x = b.call("Conv", x, b.weight(8, inputs, 3, 3, name=f"{name}.weight"), zeros, pads=[1] * 4)
        x = b.call("Sigmoid", b.call("InstanceNormalization", x, ones, zeros))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "last.weight", (slice(None), [2, 3]))
    check(model, {"second.weight": (6, 8, 3, 3), "first.weight": (8, 3, 3, 3), "last.weight": (4, 6, 3, 3)})


def tied(b: Builder, norms: bool) -> onnx.ModelProto:
    """One kernel in two layers, each with its own shift."""
    kernel = b.weight(8, 8, 3, 3, name="kernel")
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="stem"))
    for _ in range(2):
        x = b.call("Conv", x, kernel, b.vector(8), pads=[1] * 4)
        x = b.call("Relu", b.norm(x, 8) if norms else x)
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    return b.model()


def test_a_tied_kernel_is_a_coupling():
    graph = trace_onnx(ir.from_proto(tied(Builder(), norms=False)))
    assert [len(s.groups) for s in graph.sets] == [8]


def test_folding_a_batch_norm_does_not_double_a_tied_kernel():
    model = tied(Builder(), norms=True)
    result = slimmed(model)
    assert shapes(result)["kernel"] == (8, 8, 3, 3)
    assert sum(shape == (8, 8, 3, 3) for shape in shapes(result).values()) == 1
    assert sum(np.prod(shape) for shape in shapes(result).values()) <= sum(map(np.prod, shapes(model).values()))
    assert difference(run(model, X), run(result, X)) < 1e-5

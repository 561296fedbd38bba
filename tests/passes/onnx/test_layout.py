"""Subsampling with padded channels becomes a convolution, a spatial mean a pooling; numbers stay as they were."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run

from graphprune.formats.onnx_cost import onnx_cost
from graphprune.passes.onnx.layout import GlobalPoolPass, SelectChannelsPass

END = 2**31 - 1


def subsampled(b: Builder, x: str, start: int = 0, end: int = END, step: int = 2, axes=(2, 3)) -> str:
    for axis in axes:
        x = b.call("Slice", x, *(b.literal(np.array([number])) for number in (start, end, axis, step)))
    return x


def padded(b: Builder, x: str, pads=(0, 2, 0, 0, 0, 2, 0, 0), value: float | None = None, **attributes) -> str:
    fill = [] if value is None else [b.literal(np.float32(value))]
    return b.call("Pad", x, b.literal(np.array(pads)), *fill, **attributes)


def shortcut(change=lambda b, x: padded(b, subsampled(b, x)), channels: int = 4) -> onnx.ModelProto:
    """A residual block whose shortcut is `change`, of twice the channels and half the size."""
    b = Builder()
    x = b.conv(b.input(("n", 3, 9, 8)), 3, channels)
    branch = b.conv(x, channels, channels + 4, strides=[2, 2])
    b.output(b.call("Relu", b.call("Add", branch, change(b, x))))
    return b.model()


def applied(model: onnx.ModelProto, apply) -> tuple[ir.Model, bool]:
    result = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    modified = apply(result).modified
    assert not apply(result).modified
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result, modified


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_shortcut_that_subsamples_and_pads_becomes_a_convolution():
    model = shortcut()
    result, modified = applied(model, SelectChannelsPass())
    assert modified
    assert kinds(result) == ["Conv", "Conv", "Conv", "Add", "Relu"]
    selection = next(node for node in result.graph if node.metadata_props)
    assert list(selection.attributes["strides"].as_ints()) == [2, 2]
    weight = selection.inputs[1].const_value.numpy()
    np.testing.assert_array_equal(weight[:, :, 0, 0], np.eye(8, 4, -2))
    for batch in (1, 3):
        feeds = {"x": image(batch, 3, 9, 8)}
        np.testing.assert_array_equal(run(model, feeds)[0], run(result, feeds)[0])


def test_the_convolution_counts_for_no_cost():
    model = shortcut()
    result, _ = applied(model, SelectChannelsPass())
    before, after = (onnx_cost(proto.SerializeToString()) for proto in (model, ir.to_proto(result)))
    assert (before.macs, before.params) == (after.macs, after.params)


@pytest.mark.parametrize(
    "change",
    [
        lambda b, x: subsampled(b, padded(b, x)),
        lambda b, x: padded(b, padded(b, subsampled(b, x), (0, 1, 0, 0, 0, 1, 0, 0)), (0, 0, 0, 0, 0, 2, 0, 0)),
        lambda b, x: padded(b, subsampled(b, x, axes=(-1, -2)), value=0.0, mode="constant"),
    ],
)
def test_the_order_and_number_of_steps_does_not_matter(change):
    model = shortcut(change)
    result, modified = applied(model, SelectChannelsPass())
    assert modified
    assert kinds(result).count("Slice") == kinds(result).count("Pad") == 0
    feeds = {"x": image(2, 3, 9, 8)}
    np.testing.assert_array_equal(run(model, feeds)[0], run(result, feeds)[0])


@pytest.mark.parametrize(
    ("change", "channels"),
    [
        (lambda b, x: padded(b, subsampled(b, x), value=1.0), 4),
        (lambda b, x: padded(b, subsampled(b, x), mode="edge"), 4),
        (lambda b, x: padded(b, subsampled(b, x)), 6),
        (lambda b, x: b.call("Relu", padded(b, subsampled(b, x))), 4),
    ],
)
def test_what_is_no_selection_of_channels_stays(change, channels):
    model = shortcut(change, channels)
    result, modified = applied(model, SelectChannelsPass())
    assert not modified
    assert kinds(result) == [node.op_type for node in model.graph.node]


def test_a_slice_that_cuts_an_edge_off_stays():
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 4)
    cut = subsampled(b, x, start=1, step=1, axes=(2, 3))
    b.output(b.call("Add", cut, b.weight(1, 4, 7, 7)))
    _, modified = applied(b.model(), SelectChannelsPass())
    assert not modified


def test_a_value_that_others_read_stays():
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 4)
    small = padded(b, subsampled(b, x))
    b.output(b.call("Add", b.conv(x, 4, 8, strides=[2, 2]), small))
    b.output(b.call("Relu", small))
    _, modified = applied(b.model(), SelectChannelsPass())
    assert not modified


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 20])
def test_a_mean_over_space_becomes_a_pooling(keepdims, opset):
    b = Builder(opset)
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 4)
    if opset < 18:
        b.output(b.call("ReduceMean", x, axes=[2, 3], keepdims=keepdims))
    else:
        b.output(b.call("ReduceMean", x, b.literal(np.array([-2, -1])), keepdims=keepdims))
    model = b.model()
    result, modified = applied(model, GlobalPoolPass())
    assert modified
    assert kinds(result) == ["Conv", "GlobalAveragePool", *([] if keepdims else ["Flatten"])]
    feeds = {"x": image(2, 3, 8, 8)}
    assert difference(run(model, feeds), run(result, feeds)) < 1e-6
    assert [value.name for value in result.graph.outputs] == [value.name for value in model.graph.output]


@pytest.mark.parametrize("axes", [(1,), (1, 2, 3), (3,)])
def test_other_means_stay(axes):
    b = Builder()
    x = b.conv(b.input(("n", 3, 8, 8)), 3, 4)
    b.output(b.call("ReduceMean", x, b.literal(np.array(axes))))
    _, modified = applied(b.model(), GlobalPoolPass())
    assert not modified

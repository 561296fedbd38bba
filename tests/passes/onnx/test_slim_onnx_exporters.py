"""Dead channels in what exporters and quantizers write for one operator of the network that they come from."""

import numpy as np
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, shapes, zero
from slimmed import check, kill, slimmed, two_layers

from graphprune.passes.onnx.analyze import trace_onnx


def batches(model, result) -> None:
    for size in (1, 2, 5):
        feeds = {"x": image(size, 3, 8, 8)}
        assert difference(run(model, feeds), run(result, feeds)) < 1e-5


def table_of(b: Builder, x: str, channels: int, kind: str) -> str:
    """Indices that read a map of one position, laid out flat, back as a map."""
    table = np.arange(channels).reshape(1, channels, 1, 1)
    if kind == "literal":  # for a batch of 2
        return b.literal(np.concatenate([table, table + channels]))
    batch = b.call("Squeeze", b.call("Shape", x, start=0, end=1))
    samples = b.call("Range", b.literal(np.array(0)), batch, b.literal(np.array(1)))
    step = b.literal(np.array(channels))
    if kind == "sizes":  # the channels are asked for as well
        step = b.call("Squeeze", b.call("Shape", x, start=1, end=2))
    start = b.call("Unsqueeze", b.call("Mul", samples, step), b.literal(np.array([1, 2, 3])))
    return b.call("Add", start, b.literal(table))


@pytest.mark.parametrize("kind", ["literal", "free", "sizes"])
def test_a_pool_that_is_read_back_by_a_table(kind):
    b = Builder()
    x = b.call("Relu", b.conv(b.input(("n" if kind != "literal" else 2, 3, 8, 8)), 3, 8, name="first"))
    x = b.call("ReduceMean", x, b.literal(np.array([2, 3])))
    flat = b.call("Reshape", x, b.literal(np.array([-1])))
    x = b.call("Gather", flat, table_of(b, x, 8, kind))
    b.output(b.conv(x, 8, 4, kernel=1, name="second"))
    model = b.model()
    kill(model, "first", [1, 6])
    result = check(model, {"first.weight": (6, 3, 3, 3), "second.weight": (4, 6, 1, 1)})
    if kind != "literal":
        batches(model, result)


def test_resampling_by_a_table_of_positions():
    """Nearest-exact upsampling: (H, W, N, C), read at (row, column)."""
    b = Builder()
    rows = np.stack(np.meshgrid(np.arange(16) // 2, np.arange(16) // 2, indexing="ij"), -1)
    table = b.literal(rows)

    def resampled(x):
        y = b.call("GatherND", b.call("Transpose", x, perm=[2, 3, 0, 1]), table)
        return b.call("Transpose", y, perm=[2, 3, 0, 1])

    model = two_layers(b, between=resampled)
    kill(model, "first", [0, 7])
    check(model, {"first.weight": (6, 3, 3, 3), "second.weight": (4, 6, 3, 3)})


@pytest.mark.parametrize("written", ["sizes", "numbers"])
def test_a_group_norm_written_as_an_instance_norm(written):
    """Four groups of two channels: those of which both are dead go."""
    b = Builder()
    ones, zeros = b.literal(np.ones(4, np.float32)), b.literal(np.zeros(4, np.float32))
    scale, shift = (b.literal(image(8, 1, 1, seed=s), name) for s, name in ((1, "scale"), (2, "shift")))

    def group_norm(x):
        y = b.call("Reshape", x, b.literal(np.array([0, 4, -1])))
        y = b.call("InstanceNormalization", y, ones, zeros)
        target = b.call("Shape", x) if written == "sizes" else b.literal(np.array([-1, 8, 8, 8]))
        y = b.call("Reshape", y, target)
        return b.call("Add", b.call("Mul", y, scale), shift)

    model = two_layers(b, between=group_norm)
    kill(model, "first", [2, 3, 4])
    zero(model, "shift", [2, 3])
    sizes = {"first.weight": (6, 3, 3, 3), "scale": (6, 1, 1), "shift": (6, 1, 1), "second.weight": (4, 6, 3, 3)}
    batches(model, check(model, sizes))


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_onnxruntimes_own_quantization(kind):
    """QuantizeLinear and DequantizeLinear of com.microsoft: 16 bits, in an opset whose own have 8 alone."""
    b, own = Builder(17), {"domain": "com.microsoft"}
    scale, point = b.literal(np.float32(0.001)), b.literal(np.array(0, kind))
    low, high = (-127, 128) if kind is np.int8 else (-999, 1000)

    def quantized(x):
        return b.call("DequantizeLinear", b.call("QuantizeLinear", x, scale, point, **own), scale, point, **own)

    def conv(x, name, inputs, outputs):
        weight = b.literal(b.rng.integers(low, high, (outputs, inputs, 3, 3)).astype(kind), f"{name}.q")
        scales = b.literal(np.full(outputs, 1 / high, np.float32), f"{name}.scale")
        weight = b.call("DequantizeLinear", weight, scales, b.literal(np.zeros(outputs, kind)), axis=0, **own)
        return b.call("Conv", x, weight, pads=[1] * 4)

    x = b.call("Relu", conv(quantized(b.input(("n", 3, 8, 8))), "first", 3, 8))
    b.output(conv(quantized(x), "second", 8, 4), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "first.q", [2, 5])
    result = slimmed(model)
    assert shapes(result)["first.q"] == (6, 3, 3, 3)
    assert shapes(result)["first.scale"] == (6,)
    assert shapes(result)["second.q"] == (4, 6, 3, 3)
    batches(model, result)
    assert trace_onnx(ir.from_proto(model)).unknown == {}


def masked_weight(b: Builder, name: str, *shape: int) -> str:
    """A weight times its mask, as sparse training exports it."""
    mask = b.call("Cast", b.literal(np.ones(shape, np.bool_), f"{name}.mask"), to=1)
    return b.call("Mul", b.weight(*shape, name=f"{name}.weight"), mask)


def test_a_channel_is_dead_where_the_weight_and_its_mask_leave_nothing():
    """Of channel 2 the mask takes one half and the other is zero; of channel 5 all is masked."""
    b = Builder()
    x = b.call("Relu", b.call("Conv", b.input(("n", 3, 8, 8)), masked_weight(b, "first", 8, 3, 3, 3), pads=[1] * 4))
    b.output(b.call("Conv", x, masked_weight(b, "second", 4, 8, 3, 3), pads=[1] * 4), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "first.mask", 5)
    zero(model, "first.mask", (2, slice(None), 0))
    zero(model, "first.weight", (2, slice(None), slice(1, None)))
    sizes = {"first.weight": (6, 3, 3, 3), "first.mask": (6, 3, 3, 3), "second.weight": (4, 6, 3, 3)}
    check(model, sizes)

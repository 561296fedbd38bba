"""In which order the passes run makes no difference, and each says truly whether it changed anything."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, zero

from graphprune.passes.onnx.clean import EliminateDeadCodePass, EliminateIdentityPass, ZeroDenormalsPass
from graphprune.passes.onnx.fold_affine import FoldBatchNormPass, FoldBiasPass
from graphprune.passes.onnx.slim import ChannelRemovalPass, slim_model
from graphprune.passes.onnx.zero_adds import EliminateZeroAddsPass

PASSES = (
    *(ChannelRemovalPass, EliminateIdentityPass, FoldBatchNormPass, FoldBiasPass, EliminateDeadCodePass),
    *(EliminateZeroAddsPass, ZeroDenormalsPass),
)


def network() -> onnx.ModelProto:
    """Something for every pass, and for some only once others have run."""
    b = Builder()
    x = b.call("Identity", b.norm(b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="stem"), 8))
    x = b.call("Add", x, b.literal(np.full((8, 1, 1), -0.5, np.float32), "shift"))
    x = b.call("Relu", x)
    y = b.norm(b.conv(x, 8, 6, name="inner"), 6)
    y = b.call("Identity", b.conv(b.call("Relu", y), 6, 8, name="outer"))
    b.call("Sigmoid", y)  # nobody reads it
    x = b.call("Relu", b.call("Add", x, y))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    model = b.model()
    zero(model, "outer.weight", slice(None))
    zero(model, "outer.bias", slice(None))
    zero(model, "last.weight", (slice(None), [0, 3]))
    zero(model, "last.weight", (1, 1), 1e-38)
    return model


def settled(order) -> ir.Model:
    """The model once no pass of this order finds anything."""
    model = ir.from_proto(network())
    for _ in range(20):
        changed = [step(model).modified for step in order]
        if True not in changed:
            return model
    raise AssertionError("no end of changes")


def sizes(model: ir.Model) -> list[tuple[str, tuple[int, ...]]]:
    """Operators with the sizes of their literals."""
    return [
        (node.op_type, tuple(tuple(v.shape.numpy()) for v in node.inputs if v is not None and v.is_initializer()))
        for node in model.graph
    ]


def test_every_order_gives_the_same():
    x = {"x": image(2, 3, 8, 8)}
    expected = sizes(settled([make() for make in PASSES]))
    assert [kind for kind, _ in expected] == ["Conv", "Relu", "Relu", "Conv"]
    assert expected[0][1][0] == (6, 3, 3, 3)
    reference = run(network(), x)
    orders = list(itertools.permutations(PASSES))
    for index in np.random.default_rng(0).permutation(len(orders))[:12]:
        model = settled([make() for make in orders[index]])
        assert sizes(model) == expected
        assert difference(reference, run(model, x)) < 1e-5
    whole = ir.from_proto(network())
    slim_model(whole)
    assert sizes(whole) == expected


@pytest.mark.parametrize("make", PASSES)
def test_modified_is_true_to_fact(make):
    model = ir.from_proto(network())
    for _ in range(10):
        before = ir.to_proto(model).SerializeToString()
        modified = make()(model).modified
        assert modified == (ir.to_proto(model).SerializeToString() != before)
        if not modified:
            return
    raise AssertionError("no end of changes")

"""In which order the passes run makes no difference, and each says truly whether it changed anything."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, zero

from graphprune.passes.onnx import clean, fold_affine, slim
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
    assert [kind for kind, _ in expected] == ["Conv", "Relu", "Conv"]
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


@pytest.mark.parametrize(("dead", "looks"), [([], 1), ([0, 3], 2)])
def test_no_pass_runs_on_its_own_result(monkeypatch, dead, looks):
    b = Builder()
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    model = b.model()
    for name in ("first.weight", "first.bias"):
        zero(model, name, dead)
    traces, trace = [], slim.trace_onnx
    monkeypatch.setattr(slim, "trace_onnx", lambda *a, **k: traces.append(a) or trace(*a, **k))
    done = slim_model(ir.from_proto(model))
    assert (done.changed, done.removal.groups, len(traces)) == (bool(dead), len(dead), looks)


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "Gemm transposed", "ConvTranspose", "ConvTranspose in groups"])
def test_norms_are_folded_a_part_at_a_time(monkeypatch, kind):
    b = Builder()
    if kind.startswith("Gemm"):
        x = b.input(("n", 6))
        weight = b.weight(*((8, 6) if "transposed" in kind else (6, 8)))
        x, feed = b.call("Gemm", x, weight, transB=int("transposed" in kind)), image(2, 6)
    else:
        groups = 2 if "groups" in kind else 1
        shape = (8, 6, 3, 3) if kind == "Conv" else (6, 8 // groups, 3, 3)
        x, feed = b.call(kind.split()[0], b.input(("n", 6, 5, 5)), b.weight(*shape), group=groups), image(2, 6, 5, 5)
    b.output(b.norm(x, 8))
    model = b.model()
    results = []
    for chunk in (1 << 20, 1, 100):
        monkeypatch.setattr(fold_affine, "_CHUNK", chunk)
        folded = ir.from_proto(model)
        assert FoldBatchNormPass()(folded).modified
        assert len(folded.graph) == 1
        assert difference(run(model, {"x": feed}), run(folded, {"x": feed})) < 1e-5
        results.append([value.const_value.numpy() for value in folded.graph.initializers.values() if value.uses()])
    for other in results[1:]:
        assert all(np.array_equal(a, c) for a, c in zip(results[0], other, strict=True))


def test_a_norm_that_would_overflow_stays():
    b = Builder()
    b.output(b.norm(b.conv(b.input(("n", 3, 5, 5)), 3, 4, name="first"), 4))
    model = b.model()
    zero(model, "first.weight", (1, 2, 0, 0), 3e38)
    zero(model, model.graph.node[1].input[1], 1, 100.0)
    loaded = ir.from_proto(model)
    assert not FoldBatchNormPass()(loaded).modified
    assert len(loaded.graph) == 2


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "BFLOAT16"])
def test_small_numbers_are_found_in_any_part_of_a_tensor(monkeypatch, kind):
    monkeypatch.setattr(clean, "_CHUNK", 7)
    numbers = np.array([0, -0.0, 1e-31, -1e-31, 1.1e-30, -1.1e-30, 1, np.nan, np.inf, -1e-38] * 3, dtype=np.float64)
    numbers = numbers.astype(ir.DataType[kind].numpy())
    value = ir.Value(name="w", const_value=ir.tensor(numbers.reshape(6, 5), name="w"))
    reader = ir.node("Identity", [value], name="n")
    model = ir.Model(ir.Graph([], reader.outputs, nodes=[reader], initializers=[value]), ir_version=10)
    assert ZeroDenormalsPass()(model).modified
    found = value.const_value.numpy().astype(np.float64).ravel()
    expected = numbers.astype(np.float64)
    expected[[at for at in range(30) if at % 10 in (2, 3, 9)]] = 0
    np.testing.assert_array_equal(found, expected)
    assert not ZeroDenormalsPass()(model).modified

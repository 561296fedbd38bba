"""Whole graphs as modules: names, free and fixed batches, the same channel groups, and what random graphs compute."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from builder import Builder

import graphprune as gp
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.fx.capture import capture
from graphprune.passes.importer import import_onnx
from graphprune.passes.onnx.analyze import trace_onnx


def network(batch="n", size=8, opset=20):
    """Convolutions with a shortcut and a gate, a computed shape, a classifier; names as exporters give them."""
    g = Builder(opset)
    x = g.input([batch, 3, size, size], "images")
    x = g.call("Relu", g.conv(x, 3, 8, name="stem.0"))
    y = g.call("Relu", g.norm(g.conv(x, 8, 12, name="block/conv:1"), 12))
    y = g.conv(y, 12, 8, name="block/conv:2")
    pooled = g.call("GlobalAveragePool", y)
    gate = g.call("Sigmoid", g.conv(pooled, 8, 8, kernel=1, name="gate"))
    x = g.call("Add", x, g.call("Mul", y, gate))
    x = g.call("GlobalAveragePool", x)
    rows = g.literal(np.int64([-1 if batch == "n" else batch, 8]), "rows")
    x = g.call("Reshape", x, rows)
    g.output(g.call("Gemm", x, g.weight(10, 8, name="head.weight"), g.vector(10, "head.bias"), transB=1), [batch, 10])
    return g.model()


@pytest.fixture
def path(tmp_path):
    onnx.save(network(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def outputs(path, images):
    session = ort.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def pictures(count=4, size=8):
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def test_parameters_are_named_as_the_initializers(path):
    module = import_onnx(path)
    names = {name for name, _ in module.named_parameters()}
    assert {"stem.0.weight", "block/conv:1.weight", "block/conv:1.bias", "head.weight", "head.bias"} <= names
    held = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert names | {name for name, _ in module.named_buffers()} <= held
    assert module.input_names == ("images",)
    assert module.input_shapes == (("n", 3, 8, 8),)


def test_statistics_and_numbers_that_stand_alone_are_not_learned(path):
    module = import_onnx(path)
    learned = {name for name, _ in module.named_parameters()}
    norm = next(node for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization")
    assert set(norm.input[1:3]) <= learned
    assert not set(norm.input[3:5]) & learned


def test_it_is_captured_with_a_free_batch_and_the_groups_of_the_onnx_front_end(path):
    module = import_onnx(path)
    captured = capture(module, (torch.from_numpy(pictures(1)),))
    with torch.no_grad():
        found = captured(torch.from_numpy(pictures(5)))
    np.testing.assert_allclose(found.numpy(), outputs(path, pictures(5)), atol=2e-6)
    mine, theirs = gp.trace(captured), trace_onnx(path)
    assert mine.n_groups == theirs.n_groups
    assert sorted((s.name, len(s.groups)) for s in mine.sets) == sorted((s.name, len(s.groups)) for s in theirs.sets)
    plan = gp.plan(mine, ratio=0.5)
    assert set(plan.removed) <= {tensor.name for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_file_fixes_is_free_in_the_module(tmp_path, batch):
    onnx.save(network(batch), tmp_path / "fixed.onnx")
    onnx.save(network(), tmp_path / "free.onnx")
    captured = capture(import_onnx(tmp_path / "fixed.onnx"), (torch.from_numpy(pictures(1)),))
    for count in (1, 3, 4):
        with torch.no_grad():
            found = captured(torch.from_numpy(pictures(count)))
        np.testing.assert_allclose(found.numpy(), outputs(tmp_path / "free.onnx", pictures(count)), atol=2e-6)


def test_a_copy_has_weights_of_its_own(path):
    module = import_onnx(path)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        dict(twin.named_parameters())["head.bias"].add_(1.0)
        before, after = module(torch.from_numpy(pictures())), twin(torch.from_numpy(pictures()))
    torch.testing.assert_close(after, before + 1.0)


def test_in_training_normalizations_take_their_batch(path):
    module = import_onnx(path)
    images = torch.from_numpy(pictures())
    with torch.no_grad():
        inference, training = module(images), module.train()(images)
    assert not torch.allclose(inference, training, atol=1e-3)


def test_sizes_that_depend_on_numbers_are_refused_by_name(tmp_path):
    g = Builder()
    x = g.input(["n", 3, 4, 4])
    size = g.call("Cast", g.call("ReduceMax", x, keepdims=0), to=onnx.TensorProto.INT64)
    shape = g.call("Concat", g.literal(np.int64([-1])), g.call("Unsqueeze", size, g.literal(np.int64([0]))), axis=0)
    g.output(g.call("Reshape", x, shape), ["a", "b"])
    onnx.save(g.model(), tmp_path / "net.onnx")
    module = import_onnx(tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match=r"Reshape 'n_\d+' cannot be trained: its input 1 depends on"):
        module(torch.ones(1, 3, 4, 4))


def test_weights_behind_other_nodes_are_the_initializers(tmp_path):
    """Through Transpose, Reshape and Cast; what learns is the number in the file."""
    g = Builder()
    x = g.input(["n", 4])
    weight = g.call("Transpose", g.weight(6, 4, name="kernel"), perm=[1, 0])
    x = g.call("MatMul", x, weight)
    half = g.literal(np.float16(g.rng.standard_normal((3, 2, 3))), "half")
    full = g.call("Reshape", g.call("Cast", half, to=onnx.TensorProto.FLOAT), g.literal(np.int64([6, 3])))
    g.output(g.call("MatMul", x, full), ["n", 3])
    onnx.save(g.model(), tmp_path / "net.onnx")
    module = import_onnx(tmp_path / "net.onnx")
    # A module has a method `half` already.
    assert {name for name, _ in module.named_parameters()} == {"kernel", "half_"}
    assert module.renamed == {"half_": "half"}
    rows = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, outputs(tmp_path / "net.onnx", rows), atol=1e-5)


def test_literals_in_constant_nodes_of_every_form_are_known():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    forms (float[n, 2, 4] x) => (float[n, 4, 2] y, float[2] pair)
    {
      sizes = Constant <value_ints: ints = [0, 4, 2]> ()
      half = Constant <value_float: float = 0.5> ()
      axis = Constant <value_int: int = 0> ()
      pair = Constant <value_floats: floats = [3.0, 4.0]> ()
      copy = Identity (pair)
      kernel = Constant <value = float[2] {1.0, 2.0}> ()
      a = Reshape (x, sizes)
      b = Mul (a, half)
      c = Gather (copy, axis)
      d = Add (b, c)
      y = Mul (d, kernel)
    }
    """
    module = import_onnx(ir.from_onnx_text(text))
    assert {name for name, _ in module.named_parameters()} >= {"kernel"}
    x = torch.arange(16.0).reshape(2, 2, 4)
    y, pair = module(x)
    torch.testing.assert_close(y, (x.reshape(2, 4, 2) * 0.5 + 3) * torch.tensor([1.0, 2.0]))
    assert pair.tolist() == [3, 4]


def test_sizes_that_are_computed_in_floats_beside_literals_are_sizes(tmp_path):
    """As exporters write padding that makes a map as large as it was, divided by the stride."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    same (float[n, 3, high, wide] x) => (float[n, 3, a, b] y)
    {
      two = Constant <value_float: float = 2.0> ()
      zero = Constant <value_float: float = 0.0> ()
      one = Constant <value_ints: ints = [1]> ()
      none = Constant <value_ints: ints = [0, 0, 0]> ()
      last = Constant <value_int: int = 3> ()
      shape = Shape (x)
      wide_now = Gather <axis: int = 0> (shape, last)
      width = Cast <to: int = 1> (wide_now)
      half = Div (width, two)
      windows = Ceil (half)
      covered = Mul (windows, two)
      lacking = Sub (covered, width)
      positive = Clip (lacking, zero)
      whole = Cast <to: int = 7> (positive)
      axis = Constant <value_ints: ints = [0]> ()
      many = Unsqueeze (whole, axis)
      pads = Concat <axis: int = 0> (none, axis, none, many)
      y = Pad (x, pads)
    }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    module = import_onnx(tmp_path / "net.onnx")
    for width in (6, 7):
        x = torch.ones(2, 3, 4, width)
        assert torch.equal(module(x), torch.nn.functional.pad(x, (0, width % 2)))
    assert capture(module, (torch.ones(2, 3, 4, 7),))(torch.ones(5, 3, 4, 7)).shape == (5, 3, 4, 8)

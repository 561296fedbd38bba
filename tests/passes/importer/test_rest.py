"""Files that end in what has no torch form: the raw heads are what is read."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builder import Builder

import graphprune as gp
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.importer import import_onnx


def detector(batch=1, rows=16, with_scores=False):
    """Boxes and scores of two convolutions, scaled by anchors, picked by NonMaxSuppression."""
    g = Builder(17)
    x = g.input([batch, 3, 4, 4], "images")
    x = g.call("Relu", g.conv(x, 3, 8, name="stem"))
    x = g.call("Relu", g.conv(x, 8, 8, name="body"))
    boxes, scores = g.conv(x, 8, 4, name="boxes"), g.conv(x, 8, 2, name="scores")
    boxes = g.call("Reshape", boxes, g.literal(np.int64([1, 4, rows]), "rows4"))
    boxes = g.call("Transpose", boxes, perm=[0, 2, 1])
    anchors = g.literal(np.random.default_rng(0).random((1, rows, 4)).astype(np.float32) * 50, "anchors")
    boxes = g.call("Add", g.call("Exp", boxes), anchors)
    scores = g.call("Reshape", g.call("Sigmoid", scores), g.literal(np.int64([1, 2, rows]), "rows2"))
    limits = [g.literal(np.asarray(v), n) for v, n in ((np.int64([5]), "most"), (np.float32([0.5]), "overlap"))]
    picked = g.call("NonMaxSuppression", boxes, scores, *limits, g.literal(np.float32([0.1]), "least"))
    g.output(picked, None, dtype=onnx.TensorProto.INT64)
    if with_scores:
        g.output(boxes, None)
    return g.model()


def values(path, names, images):
    model = onnx.load(path)
    own = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    return ort.InferenceSession(model.SerializeToString()).run(list(names), {"images": images})


def test_raw_heads_are_read_where_the_end_has_no_torch_form(tmp_path, caplog):
    onnx.save(detector(with_scores=True), tmp_path / "net.onnx")
    with caplog.at_level("WARNING", "graphprune"):
        module = gp.load_model(tmp_path / "net.onnx")
    assert "NonMaxSuppression at the end has no torch form" in caplog.text
    assert module.left_out == ("NonMaxSuppression",)
    images = np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(images))
    expected = values(tmp_path / "net.onnx", module.output_names, images)
    # Both heads as the convolutions give them, and the output that does not come out of the selection.
    assert [tuple(array.shape) for array in expected][:2] == [(1, 4, 4, 4), (1, 2, 4, 4)]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)
    assert "anchors" in {name for name, _ in module.named_parameters()}  # an output of its own needs them


def test_layers_behind_what_has_no_torch_form_are_refused():
    g = Builder(17)
    x = g.conv(g.input(["n", 3, 4, 4], "images"), 3, 4, name="first")
    x = g.call("Bernoulli", x)
    g.output(g.conv(x, 4, 2, name="last"), None)
    with pytest.raises(UnsupportedModelError, match="no torch form of Bernoulli: the file can be slimmed"):
        import_onnx(onnx_file(g.model()))


def onnx_file(model):
    import onnx_ir as ir

    return ir.from_proto(model)

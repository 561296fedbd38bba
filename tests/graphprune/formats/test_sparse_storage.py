import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn

import graphprune as gp
from graphprune.formats import sparse_storage
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.formats.sparse_storage import store_sparse
from graphprune.passes.errors import GraphPruneError

IMAGES = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)


def exported(folder, share):
    """A network of two layers of which the first has a share of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand_like(model[0].weight) < share)
    path = folder / "m.onnx"
    gp.export_onnx(model, (torch.zeros(1, 64),), path)
    return path


def run(path):
    return ort.InferenceSession(str(path)).run(None, {_input(path): IMAGES})[0]


def _input(path):
    return ort.InferenceSession(str(path)).get_inputs()[0].name


def test_a_weight_that_is_mostly_zero_makes_the_file_smaller(tmp_path):
    path = exported(tmp_path, 0.05)
    before, size = run(path), path.stat().st_size
    stored = store_sparse(path, IMAGES)
    assert len(stored.sparse) == 1
    assert (stored.bytes_dense, stored.bytes) == (size, path.stat().st_size)
    assert stored.bytes < 0.5 * size
    np.testing.assert_allclose(run(path), before, rtol=1e-5, atol=1e-6)
    sparse = onnx.load(path).graph.sparse_initializer[0]
    assert list(sparse.dims) in ([200, 64], [64, 200])
    assert numpy_helper.to_array(sparse.values).all()
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_weight_that_would_not_get_smaller_stays_dense(tmp_path):
    path = exported(tmp_path, 0.5)
    before = path.read_bytes()
    stored = store_sparse(path, IMAGES)
    assert stored.sparse == ()
    assert stored.bytes == stored.bytes_dense == len(before)
    assert path.read_bytes() == before


def test_a_runtime_that_does_not_take_it_leaves_the_file_alone(tmp_path, monkeypatch):
    path = exported(tmp_path, 0.05)
    before = path.read_bytes()

    def refuse(*args, **kwargs):
        raise GraphPruneError("sparse initializers are not read here")

    monkeypatch.setattr(sparse_storage, "compare", refuse)
    stored = store_sparse(path, IMAGES)
    assert stored.problem == "sparse initializers are not read here"
    assert stored.sparse == ()
    assert path.read_bytes() == before
    assert stored.to_dict()["problem"]


def test_what_is_stored_is_counted(tmp_path):
    path = exported(tmp_path, 0.05)
    weights = sum(np.count_nonzero(numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer)
    assert onnx_cost(path).params == 64 * 200 + 200 + 200 * 10 + 10
    store_sparse(path, IMAGES)
    assert onnx_cost(path).params == weights
    assert onnx_cost(path).macs == 64 * 200 + 200 * 10


def test_what_slims_a_sparse_file_writes_a_sparse_file(tmp_path, caplog):
    path = exported(tmp_path, 0.05)
    store_sparse(path, IMAGES)
    report = gp.slim_onnx(path, tmp_path / "slim.onnx", ratio=0.5)
    assert "not valid ONNX" not in caplog.text
    assert report.bytes_after < report.bytes_before
    assert report.params_after < report.params_before
    assert len(onnx.load(tmp_path / "slim.onnx").graph.sparse_initializer) == 1

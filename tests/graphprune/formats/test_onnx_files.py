"""Files of which one refers to the other: both, or none."""

import errno
import os

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune.errors import GraphPruneError, OutputExistsError
from graphprune.formats import onnx_files
from graphprune.formats.files import atomic_write_together
from graphprune.formats.onnx_files import written
from graphprune.passes.onnx.model import load_model
from graphprune.slimming import slim_onnx


def network(dead: int = 0) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weight[:dead] = 0
    text = "m (float[n, 32] x) => (float[n, 8] y) { h = Gemm<transB = 1>(x, w) r = Relu(h) y = MatMul(r, v) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight[:, :8] + 1, "v"))
    return model


def run(path):
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    return ort.InferenceSession(path).run(None, {"x": x})[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_BYTES", 1000)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    onnx.save(network(16), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return path


def test_external_data_goes_in_and_comes_out(source, tmp_path):
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    report = slim_onnx(source, tmp_path / "out" / "slim.onnx")
    assert report.removed_groups == 16
    assert names(tmp_path / "out") == ["slim.onnx", "slim.onnx.data"]
    assert report.bytes_after == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert np.allclose(run(source), run(tmp_path / "out" / "slim.onnx"), rtol=1e-5, atol=1e-5)
    assert before == {path.name: path.read_bytes() for path in source.parent.iterdir()}


def test_a_file_may_take_its_own_place(source):
    expected = run(source)
    slim_onnx(source, source, force=True)
    assert names(source.parent) == ["m.onnx", "m.onnx.data"]
    assert onnx.load(source).graph.initializer[0].dims == [48, 32]
    assert np.allclose(run(source), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"ratio": 0.5}])
def test_what_stands_beside_is_not_overwritten_unasked(source, tmp_path, options):
    (tmp_path / "slim.onnx.data").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"slim\.onnx\.data"):
        slim_onnx(source, tmp_path / "slim.onnx", **options)
    assert names(tmp_path) == ["in", "slim.onnx.data"]
    assert (tmp_path / "slim.onnx.data").read_text() == "mine"
    slim_onnx(source, tmp_path / "slim.onnx", force=True, **options)
    assert names(tmp_path) == ["in", "slim.onnx", "slim.onnx.data"]


@pytest.mark.parametrize("writer", ["save", "write"])
def test_a_full_disk_leaves_what_was_there(source, tmp_path, monkeypatch, writer):
    (tmp_path / "slim.onnx").write_text("old")
    (tmp_path / "slim.onnx.data").write_text("old data")

    def full(model, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if writer == "write":
        onnx.save(network(16), source)
        (source.parent / "m.onnx.data").unlink()
        monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_BYTES", 1 << 30)
        monkeypatch.setattr(onnx_files.wire, "write", full)
    else:
        monkeypatch.setattr(ir, "save", full)
    with pytest.raises(GraphPruneError, match=r"slim\.onnx: the disk is full"):
        slim_onnx(source, tmp_path / "slim.onnx", force=True)
    assert names(tmp_path) == ["in", "slim.onnx", "slim.onnx.data"]
    assert (tmp_path / "slim.onnx").read_text() == "old"
    assert (tmp_path / "slim.onnx.data").read_text() == "old data"


def test_a_failed_check_leaves_what_was_there(source, tmp_path):
    (tmp_path / "slim.onnx").write_text("old")

    def write():
        with written(load_model(source), tmp_path / "slim.onnx") as draft:
            assert names(draft.parent) == ["slim.onnx", "slim.onnx.data"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["in", "slim.onnx"]
    assert (tmp_path / "slim.onnx").read_text() == "old"


def test_no_folder_can_be_made_is_one_line(source, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(GraphPruneError, match=r"slim\.onnx: cannot be written"):
        slim_onnx(source, tmp_path / "taken" / "slim.onnx", ratio=0.5)


def test_whoever_is_stopped_between_the_names_leaves_no_model_of_other_data(tmp_path, monkeypatch):
    for name in ("m", "m.data"):
        (tmp_path / name).write_text("old")
    replace = type(tmp_path).replace

    def stop(self, target):
        if target == tmp_path / "m":
            raise KeyboardInterrupt
        return replace(self, target)

    def write():
        with atomic_write_together(tmp_path / "m.data", tmp_path / "m") as parts:
            for part in parts:
                part.write_text("new")

    monkeypatch.setattr(type(tmp_path), "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["m.data"]
    assert (tmp_path / "m.data").read_text() == "new"

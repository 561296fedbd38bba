"""Sessions whose weights stay in the file compute what others do."""

import os

import numpy as np
import onnx
import pytest

from graphprune.errors import ModelLoadError
from graphprune.runtime.onnx_session import open_session

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
m (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w) y = Add(h, b) }
"""


@pytest.fixture
def source(tmp_path):
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        numbers = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, name))
    model.doc_string = "x"  # moves the weights to an odd place
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def run(session):
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)})[0]


def external(source):
    path = source.with_name("e.onnx")
    onnx.save(onnx.load(source), path, save_as_external_data=True, location="e.data", size_threshold=0)
    return path


@pytest.mark.parametrize("optimize", [True, False])
def test_weights_inside_and_outside_the_file_are_mapped(source, optimize):
    expected = run(open_session(source, optimize=optimize))
    for path in (source, external(source)):
        np.testing.assert_allclose(run(open_session(path, optimize=optimize, mapped=True)), expected, rtol=1e-6)


def test_it_is_the_file_that_is_read(source, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "graphprune.runtime.onnx_session.outline", lambda path, location: seen.append(location) or b"broken"
    )
    expected = run(open_session(source))
    np.testing.assert_array_equal(run(open_session(source, mapped=True)), expected)  # read as usual instead
    assert seen == ["m.onnx"]


def test_a_name_relative_to_here_or_a_link_will_do(source, monkeypatch):
    expected = run(open_session(source, mapped=True))
    monkeypatch.chdir(source.parent)
    np.testing.assert_array_equal(run(open_session("m.onnx", mapped=True)), expected)
    os.symlink(source, source.parent / "link.onnx")
    np.testing.assert_array_equal(run(open_session("link.onnx", mapped=True)), expected)


def test_what_cannot_be_loaded_is_one_line(source):
    path = external(source)
    path.with_name("e.data").unlink()
    with pytest.raises(ModelLoadError, match=r"e\.onnx: onnxruntime cannot load it") as caught:
        open_session(path, mapped=True)
    assert "\n" not in str(caught.value)

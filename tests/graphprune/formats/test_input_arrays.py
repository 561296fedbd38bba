"""Arrays for the inputs of a file."""

import numpy as np
import onnx
import onnx.parser
import pytest

from graphprune.errors import DataError
from graphprune.formats.input_arrays import read_inputs


def model(folder, inputs):
    text = f'<ir_version: 8, opset_import: ["" : 18]> net ({inputs}) => (float[n,3] y) {{ y = Relu(x) }}'
    onnx.save(onnx.parser.parse_model(text), folder / "m.onnx")
    return folder / "m.onnx"


def test_a_single_array_is_that_of_the_only_input(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    assert [*read_inputs(tmp_path / "a.npy", model(tmp_path, "float[n,3] x"))] == ["x"]
    with pytest.raises(DataError, match=r"the model has 2 inputs; give an \.npz file with an array for each"):
        read_inputs(tmp_path / "a.npy", model(tmp_path, "float[n,3] x, float[n] z"))


def test_several_arrays_have_names(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), z=np.zeros(2))
    found = read_inputs(tmp_path / "a.npz", model(tmp_path, "float[n,3] x, float[n] z"))
    assert {name: array.shape for name, array in found.items()} == {"x": (2, 3), "z": (2,)}


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_what_holds_no_arrays(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_inputs(tmp_path / "a.npz", model(tmp_path, "float[n,3] x"))
    with pytest.raises(DataError, match="no such file"):
        read_inputs(tmp_path / "none.npz", model(tmp_path, "float[n,3] x"))

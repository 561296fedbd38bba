"""Arrays for the inputs of an ONNX file, as a NumPy file holds them."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from graphprune.data.arrays import load_arrays
from graphprune.passes.errors import DataError
from graphprune.runtime.onnx_inputs import input_specs
from graphprune.runtime.onnx_session import open_session

__all__ = ["read_inputs"]


def read_inputs(path: Path, source: Path) -> dict[str, NDArray[Any]]:
    """Return arrays by input of an ONNX file: a .npz file names them, a .npy file holds that of the only input.

    Raises:
        DataError: the file is missing or broken, or holds one array where the model has several inputs.
        ModelLoadError: the ONNX file is missing, or onnxruntime cannot load it.
    """
    arrays = load_arrays(path)
    if "" not in arrays:
        return arrays
    names = [spec.name for spec in input_specs(open_session(source, optimize=False, mapped=True), str(source))]
    if len(names) != 1:
        raise DataError(f"{path}: the model has {len(names)} inputs; give an .npz file with an array for each")
    return {names[0]: arrays[""]}

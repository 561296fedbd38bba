"""Whether an ONNX file keeps to the standard, asked without its weights in memory."""

import tempfile
from pathlib import Path

import onnx

from graphprune.passes.onnx.wire import outline
from graphprune.runtime.onnx_session import external_files, one_line

__all__ = ["invalidity"]


def invalidity(path: Path) -> str:
    """What onnx finds wrong with a file; looked at without its weights in memory, by an outline that refers to them.

    The folder of the file may be one that cannot be written to. So the outline lies elsewhere, with empty files of the
    same size in place of those that hold weights.
    """
    text = outline(path, location=path.name)
    model = onnx.load_model_from_string(text)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as name:
        folder = Path(name)
        for holder in {path.name, *external_files(model)}:
            if (path.parent / holder).is_file() and ".." not in Path(holder).parts and not Path(holder).is_absolute():
                (folder / holder).parent.mkdir(parents=True, exist_ok=True)
                with (folder / holder).open("wb") as stand_in:
                    stand_in.truncate((path.parent / holder).stat().st_size)
        sketch = folder / f"{path.name}.outline"
        sketch.write_bytes(text)
        try:
            if model.graph.sparse_initializer:
                onnx.checker.check_model(str(sketch))
                sketch.write_bytes(_with_dense_types(model).SerializeToString())
            onnx.checker.check_model(str(sketch), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
            return one_line(error)
    return ""


def _with_dense_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of its sparse literals: onnx's inference takes the latter for another type.

    By the letter of the specification it is right. But onnxruntime writes them out as it loads them, and reads them as
    any other weight.
    """
    for sparse in model.graph.sparse_initializer:
        value = onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        model.graph.input.append(value)
    model.graph.ClearField("sparse_initializer")
    return model

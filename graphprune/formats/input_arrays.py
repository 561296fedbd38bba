"""Arrays for the inputs of a model, as a NumPy file holds them, or as they are given in Python."""

import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from graphprune.data.arrays import is_array_file, load_arrays
from graphprune.data.named_arrays import dims_text, names_of, samples_of_inputs
from graphprune.data.samples import Samples
from graphprune.passes.errors import DataError
from graphprune.runtime.onnx_inputs import InputSpec, input_specs
from graphprune.runtime.onnx_session import open_session
from graphprune.verification.model_runner import describe_inputs

__all__ = ["arrays_for", "read_inputs", "samples_for"]

logger = logging.getLogger("graphprune")

_OF_FILES = (1, 3)  # channels that images from files can have


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


def arrays_for(given: Any, model: nn.Module | ExportedProgram | None) -> Mapping[str, Any] | None:
    """Return arrays by input where that is what is given for a model; "" for the only one, None where it is images.

    Args:
        given: a mapping, or an array or the path of a NumPy file for a model of several inputs, or one of no image.
        model: what they are for.

    Raises:
        DataError: the file is missing or broken.
    """
    if isinstance(given, Mapping):
        return given
    specs = () if model is None else _specs(model)
    if not specs or (len(specs) == 1 and _is_image(specs[0])):
        return None
    if isinstance(given, str | os.PathLike):
        return load_arrays(Path(given)) if is_array_file(Path(given)) else None
    return {"": given} if hasattr(given, "dtype") else None


def samples_for(arrays: Mapping[str, Any], model: nn.Module | ExportedProgram | None, name: str) -> Samples:
    """Return the samples that arrays hold for a model, which stand along the first dimension of each.

    Args:
        arrays: by input; "" for the only one.
        model: what they are for.
        name: where they came from.

    Raises:
        DataError: there is none for an input, or one that is not what the input takes.
    """
    specs = () if model is None else _specs(model)
    is_stated = model is not None and describe_inputs(model) is not None
    if not specs:  # a module of one input, which says nothing of it
        specs = tuple(InputSpec(key, np.float32, ()) for key in list(arrays)[:1])
    if "" in arrays:
        if len(specs) != 1:
            raise DataError(
                f"{name}: one array, and the model has {len(specs)} inputs ({names_of(specs)}): give one for each by "
                "name, as an .npz file or a mapping"
            )
        arrays = {specs[0].name: arrays[""]}
    if not is_stated:
        specs = tuple(_like(spec.name, arrays[spec.name]) if spec.name in arrays else spec for spec in specs)
    samples = samples_of_inputs(specs, arrays, name)
    for key, shape in samples.shapes.items():
        if shape and shape[0]:
            raise DataError(
                f"{name}: the array for the input '{key}' ({dims_text(shape)}) has no row for each sample along its "
                "first dimension: repeat it, or move the samples there"
            )
    logger.info("data: %d samples from %s, arrays for %s, taken as they are", len(samples), name, names_of(specs))
    return samples


def _is_image(spec: InputSpec) -> bool:
    """Can it be an input of images from files, as far as it states its sizes?"""
    if len(spec.dims) != 4:
        return False
    return not isinstance(spec.dims[1], int) or bool({spec.dims[1], spec.dims[3]} & {*_OF_FILES})


def _specs(model: nn.Module | ExportedProgram) -> tuple[InputSpec, ...]:
    """The inputs of a model: as it states them, or else the arguments of a module's `forward`, if it needs several."""
    stated = describe_inputs(model)
    if stated is not None or not isinstance(model, nn.Module):
        return stated or ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    return tuple(InputSpec(name, np.float32, ()) for name in needed) if len(needed) > 1 else ()


def _like(name: str, array: Any) -> InputSpec:
    """An input that takes arrays of this kind, in float32 where they are of floating point; the batch comes first."""
    found = array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
    kind = np.float32 if np.issubdtype(found.dtype, np.floating) else found.dtype.type
    return InputSpec(name, kind, ("batch", *[None] * (found.ndim - 1)) if found.ndim else ())

"""Arrays for all inputs of a model, by name: checked against what the inputs are, and brought into samples."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.data.samples import Samples, samples_of_arrays
from graphprune.passes.errors import DataError
from graphprune.runtime.onnx_inputs import InputSpec

__all__ = ["dims_text", "names_of", "samples_of_inputs"]

logger = logging.getLogger("graphprune")


def samples_of_inputs(specs: Sequence[InputSpec], inputs: Mapping[str, Any], name: str) -> Samples:
    """Return the samples that arrays for all inputs hold, along the dimension that is the batch.

    Args:
        specs: the inputs.
        inputs: arrays by name of the input; others are not used, and named in the log.
        name: where they came from, for messages.

    Raises:
        DataError: there is none for an input, or one that is empty, or not what the input takes.
    """
    if missing := [spec for spec in specs if spec.name not in inputs]:
        held = ", ".join(f"'{key}'" for key in inputs) or "none"
        raise DataError(f"{name}: there is no array for the input {names_of(missing)} of the model, only {held}")
    if unused := sorted(set(inputs) - {spec.name for spec in specs}):
        logger.warning("%s: no input is called '%s', that array is not used", name, "', '".join(unused))
    arrays = {spec.name: _as_taken(spec, inputs[spec.name], name) for spec in specs}
    axes, count = _batch_axes(specs, arrays, name)
    for spec, axis in zip(specs, axes, strict=True):
        sizes = arrays[spec.name].shape
        if any(
            isinstance(d, int) and d != n and at != axis for at, (d, n) in enumerate(zip(spec.dims, sizes, strict=True))
        ):
            raise _misfit(spec, sizes, name)
    return samples_of_arrays(arrays, axes, count, name)


def _as_taken(spec: InputSpec, given: Any, name: str) -> NDArray:
    """An array in the number format of an input.

    Raises:
        DataError: it is empty, has other dimensions, holds numbers that are not finite, or of another kind.
    """
    array = given.detach().cpu().numpy() if hasattr(given, "detach") else np.asarray(given)
    if array.ndim != len(spec.dims):
        raise _misfit(spec, array.shape, name)
    if not array.size:
        raise DataError(f"{name}: the array for the input '{spec.name}' is empty, of shape {array.shape}")
    is_pixels = array.dtype == np.uint8 and issubclass(spec.dtype, np.floating)
    if is_pixels or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        what = "pixels, perhaps: normalize them first, or give images" if is_pixels else "convert it first"
        raise DataError(
            f"{name}: the array for the input '{spec.name}' holds {array.dtype} where the model takes "
            f"{np.dtype(spec.dtype)} ({what})"
        )
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        raise DataError(
            f"{name}: the array for the input '{spec.name}' holds numbers that are not finite: look at how it was made"
        )
    return array.astype(spec.dtype, copy=False)


def _batch_axes(specs: Sequence[InputSpec], arrays: Mapping[str, NDArray], name: str) -> tuple[list[int | None], int]:
    """Along which dimension of each array the samples stand (None: it is the same for all), and how many there are.

    It is the one that is called as the first of the first input, or else the first one.
    """
    batch = next((spec.dims[0] for spec in specs if spec.dims), None)
    places = [spec.dims.index(batch) if isinstance(batch, str) and batch in spec.dims else 0 for spec in specs]
    counted = [
        (arrays[spec.name].shape[at], spec.dims[at]) for spec, at in zip(specs, places, strict=True) if spec.dims
    ]
    if not counted:
        raise DataError(f"{name}: no input of the model has a batch, so there are no samples")
    count, stated = next(((size, dim) for size, dim in counted if size != dim), counted[0])
    axes: list[int | None] = []
    for spec, at in zip(specs, places, strict=True):
        size, dim = (arrays[spec.name].shape[at], spec.dims[at]) if spec.dims else (0, 0)
        if spec.dims and size == count and (not isinstance(dim, int) or dim == stated):
            axes.append(at)
        elif size == dim or (isinstance(dim, str) and dim != batch):
            axes.append(None)
        elif isinstance(dim, int) and dim != stated:
            raise _misfit(spec, arrays[spec.name].shape, name)
        else:
            raise DataError(f"{name}: there are {count} samples, and {size} of the input '{spec.name}'")
    return axes, count


def _misfit(spec: InputSpec, sizes: Sequence[int], name: str) -> DataError:
    return DataError(
        f"{name}: the array for the input '{spec.name}' is {dims_text(sizes)} where the model takes "
        f"{dims_text(spec.dims)}"
    )


def dims_text(dims: Sequence[int | str | None]) -> str:
    """Return a shape in words, with a question mark for a free size."""
    return "x".join(str(dim) if isinstance(dim, int) else "?" for dim in dims) or "a single number"


def names_of(specs: Sequence[InputSpec]) -> str:
    """Return the names of inputs in words."""
    return ", ".join(f"'{spec.name}'" for spec in specs)

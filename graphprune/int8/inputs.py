"""What an int8 file is calibrated on and judged by: images or arrays, in the form in which the file takes them."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from graphprune.data import ImageSource, Preprocess, load_images
from graphprune.data.arrays import is_array_file, load_arrays
from graphprune.data.named_arrays import dims_text, names_of, samples_of_inputs
from graphprune.data.samples import Samples
from graphprune.inputs import DataOptions, Images
from graphprune.passes.errors import DataError, UnsupportedModelError, UsageError
from graphprune.runtime.onnx_inputs import InputSpec, input_specs
from graphprune.runtime.onnx_session import one_line, open_session

__all__ = ["example_of", "samples_of", "specs_of"]

logger = logging.getLogger("graphprune")

_COLORS = (1, 3)  # channels that images from files can have


def specs_of(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Describe the inputs that have to be given; literals may be listed as well, and a size of -1 is a free one."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name not in stored:
            tensor = value.type.tensor_type
            dims = tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param or None for dim in tensor.shape.dim)
            found.append(InputSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).type, dims))
    return tuple(found)


def samples_of(
    model: onnx.ModelProto,
    images: Images | None,
    inputs: Mapping[str, Any] | None = None,
    data: DataOptions | None = None,
) -> Samples:
    """Return samples of all inputs of a model.

    Images from files, in memory or of a loaded source are brought into the form of the only input: channels first or
    last, normalized as its metadata or `data` say, or as they are where it takes bytes. Arrays are taken as they are.

    Args:
        model: the model; its metadata may tell how images are normalized.
        images: of its only input: a path, what `load_images` returned, or an array.
        inputs: instead of them, arrays by input, with the samples along the dimension that is the batch.
        data: how images are read from files.

    Raises:
        UsageError: both are given, or neither; or a preprocessing for what is taken as it is.
        DataError: an array or the images are missing, empty, or not what the model takes.
        UnsupportedModelError: the model's metadata cannot be read.
    """
    specs, given = specs_of(model), data or DataOptions()
    if isinstance(images, Samples):
        return _in_order(images, specs)
    if (images is None) == (inputs is None):
        raise UsageError("int8 needs `images`, or arrays for all `inputs`: give one of the two")
    if isinstance(images, np.ndarray | torch.Tensor):
        inputs = {_only(specs).name: images}
    name = "the arrays given"
    path = Path(images) if isinstance(images, str | os.PathLike) else None
    if path is not None and is_array_file(path) and (len(specs) != 1 or _image_input(specs[0]) is None):
        arrays, name = load_arrays(path), str(path)
        inputs = {_only(specs).name: arrays[""]} if "" in arrays else arrays
    if inputs is not None:
        if given.mean or given.std or given.image_size:
            raise UsageError("arrays are taken as they are: `mean`, `std` and `image_size` are for images")
        samples = samples_of_inputs(specs, inputs, name)
        return samples if given.limit is None else samples.sample(given.limit, 0)
    assert images is not None
    return _of_images(_image(_only(specs)), images, given, _noted(model))


def _in_order(samples: Samples, specs: Sequence[InputSpec]) -> Samples:
    """The same samples for a model, which must have the inputs that they are for.

    Raises:
        DataError: it has others.
    """
    names = [spec.name for spec in specs]
    if list(samples.shapes) != names:
        raise DataError(
            f"{samples.name}: samples for {', '.join(samples.shapes)}, and the model takes {names_of(specs)}"
        )
    return samples


def example_of(source: Path, inputs: Mapping[str, Any]) -> dict[str, NDArray]:
    """Return what the first run of an ONNX file on arrays reads: one sample, or as many as its batch is.

    Raises:
        As `samples_of`.
    """
    specs = input_specs(open_session(source, optimize=False, mapped=True), str(source))
    first = specs[0].dims[0] if specs[0].dims else 1
    samples = samples_of_inputs(specs, inputs, "the arrays given")
    batch = next(samples.batches(first if isinstance(first, int) else 1, fixed=True))
    return {spec.name: array for spec, array in zip(specs, batch, strict=True)}


def _only(specs: Sequence[InputSpec]) -> InputSpec:
    if len(specs) != 1:
        raise DataError(
            f"the model has {len(specs)} inputs ({names_of(specs)}), and images are for a single one: give arrays for "
            "all of its inputs by name, as `inputs`"
        )
    return specs[0]


# Images


@dataclass(frozen=True)
class _ImageInput:
    """An input of images: where its channels stand, and the sizes that it states."""

    spec: InputSpec
    channels_last: bool

    @property
    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width."""
        one, two, three = (size if isinstance(size, int) else None for size in self.spec.dims[1:])
        return (three, one, two) if self.channels_last else (one, two, three)

    @property
    def takes_bytes(self) -> bool:
        return self.spec.dtype is np.uint8

    def formed(self, batch: NDArray) -> NDArray:
        """Images as the input takes them, of such with the channels first."""
        batch = batch.transpose(0, 2, 3, 1) if self.channels_last else batch
        return np.asarray(batch, dtype=self.spec.dtype, order="C")


def _image_input(spec: InputSpec) -> _ImageInput | None:
    """How an input takes images; None where it is no input of images of 1 or 3 channels, as floats or bytes."""
    if len(spec.dims) != 4 or not (issubclass(spec.dtype, np.floating) or spec.dtype is np.uint8):
        return None
    first, last = spec.dims[1], spec.dims[3]
    if first in _COLORS:
        return _ImageInput(spec, channels_last=False)
    if last in _COLORS:
        return _ImageInput(spec, channels_last=True)
    return None if isinstance(first, int) else _ImageInput(spec, channels_last=False)


def _image(spec: InputSpec) -> _ImageInput:
    found = _image_input(spec)
    if found is None:
        raise DataError(
            f"the model takes {dims_text(spec.dims)} numbers in {np.dtype(spec.dtype)}, which are no images of 1 or 3 "
            "channels: give an array for its input, as `inputs`"
        )
    return found


def _of_images(taken: _ImageInput, images: Any, given: DataOptions, noted: Preprocess | None) -> Samples:
    """Samples of an input of images."""
    channels, height, width = taken.sizes
    if taken.takes_bytes and (given.mean or given.std):
        raise UsageError("the model takes the bytes of images as they are: leave out `mean` and `std`")
    if isinstance(images, ImageSource):
        source = images
    else:
        own = (height, width) if height and width else None
        source = load_images(
            os.fspath(images),
            image_size=given.image_size or own or (noted.image_size if noted else None),
            channels=given.channels or channels or 3,
            mean=given.mean or (noted.mean if noted else None),
            std=given.std or (noted.std if noted else None),
            limit=given.limit,
            normalized=not taken.takes_bytes,
        )
    expected, shape = (channels, height, width), source.preprocess.input_shape
    if any(want not in (None, got) for want, got in zip(expected, shape, strict=True)):
        raise DataError(
            f"{source.name}: images of {dims_text(shape)} (channels x height x width) where the model takes "
            f"{dims_text(expected)}"
        )
    if taken.takes_bytes and source.pixels.dtype != np.uint8:
        raise DataError(f"{source.name}: holds floating-point numbers where the model takes bytes (0..255)")

    def read(at: NDArray[np.int64]) -> tuple[NDArray, ...]:
        pixels = source.pixels[source.indices[at]].transpose(0, 3, 1, 2) if taken.takes_bytes else source.batch(at)
        return (taken.formed(pixels),)

    sizes = (*shape[1:], shape[0]) if taken.channels_last else shape
    return Samples(read, len(source), {taken.spec.name: (0, *sizes)}, name=source.name)


def _noted(model: onnx.ModelProto) -> Preprocess | None:
    """What the metadata of a file say about its images."""
    noted = next((p.value for p in model.metadata_props if p.key == "graphprune_preprocessing"), None)
    try:
        return Preprocess.from_dict(json.loads(noted)) if noted else None
    except (ValueError, UsageError) as error:
        raise UnsupportedModelError(
            f"its metadata graphprune_preprocessing cannot be read ({one_line(error)}): take that entry out, and give "
            "`mean` and `std`"
        ) from error

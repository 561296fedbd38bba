"""Bringing a model and images together: what size and colors the model takes, and a capture on real images."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.data import ImageSource, Preprocess, Samples, Source, load_images
from graphprune.data.batches import as_batch, tensors_of
from graphprune.data.named_arrays import dims_text, names_of
from graphprune.formats.input_arrays import arrays_for, samples_for
from graphprune.formats.user_code import one_line
from graphprune.passes.errors import CaptureError, DataError, UnsupportedModelError, UsageError
from graphprune.passes.fx.capture import at_sizes, capture, module_of
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.outputs import layouts, run
from graphprune.passes.fx.sizes import has_sizes_of
from graphprune.runtime.torch_mode import evaluation
from graphprune.verification.model_runner import captured_batch, describe_inputs

__all__ = [
    "DataOptions",
    "Images",
    "capture_on",
    "expected_images",
    "image_sizes",
    "read_images",
    "refuse_fixed_batch",
    "require_batch",
]

logger = logging.getLogger("graphprune")

Images = str | os.PathLike[str] | ImageSource | Samples | np.ndarray | torch.Tensor | Mapping[str, Any]
"""Where images come from: a path (folder, zip, .npz, .npy), a loaded source, or an array of network inputs.

Or, for models of several inputs and of such as are no images, arrays by input: a mapping, or the path of an .npz file.
"""

_EXAMPLES = 8
_OF_FILES = (1, 3)  # channels that images from files can have


@dataclass(frozen=True)
class DataOptions:
    """How images are read; `None` is what the model takes, or else what `load_images` does by default.

    Attributes:
        image_size: side of the square, or (height, width).
        channels: 3 or 1.
        mean: one value a channel, for pixels scaled to 0..1.
        std: likewise.
        limit: use only so many images.
    """

    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    limit: int | None = None


def expected_images(model: nn.Module | ExportedProgram) -> tuple[int | None, tuple[int, int] | None]:
    """Return channels, and height and width, of the images that a model takes, as far as the model says.

    Raises:
        UnsupportedModelError: the model has several inputs, or one that is no image.
    """
    specs = describe_inputs(model)
    if specs is None:
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError("the exported program takes no tensor; a single input of images is needed")
        taken = [part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d) and part.groups == 1]
        # Modules stand in the order they were made in, and a head may have been made before the stem.
        return next((n for n in taken if n in _OF_FILES), taken[0] if taken else None), None
    if len(specs) != 1 or len(specs[0].dims) != 4:
        found = ", ".join("x".join(str(n) if isinstance(n, int) else "?" for n in spec.dims) for spec in specs)
        raise UnsupportedModelError(
            f"the model takes {found}; images are for a single input of images (NxCxHxW): give an array for each "
            f"input by name ({names_of(specs)}), as an .npz file or a mapping"
        )
    channels, height, width = image_sizes(specs[0].dims)
    return channels, (height, width) if height is not None and width is not None else None


def require_batch(model: nn.Module | ExportedProgram, shapes: Iterable[Sequence[int]]) -> None:
    """Do nothing where shapes of inputs begin with a batch.

    Raises:
        UsageError: they do not, as far as the model's first convolution tells.
    """
    if not isinstance(model, nn.Module) or describe_inputs(model) is not None:
        return  # what states its inputs is compared with them
    layers = (part for part in model.modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    rank = next((len(layer.kernel_size) for layer in layers), 0) + 1
    for shape in shapes:
        if rank > 1 and len(shape) == rank:
            text = "x".join(map(str, shape))
            raise UsageError(f"the shape {text} has no batch: it comes first, as in 1x{text}")


def image_sizes(dims: Sequence[int | str | None]) -> tuple[int | None, int | None, int | None]:
    """Return channels, height and width of an input of images, as far as it states them.

    Args:
        dims: batch, channels, height and width.

    Raises:
        UnsupportedModelError: it has the channels last, as in files from TensorFlow.
    """
    channels, height, width = (size if isinstance(size, int) else None for size in dims[1:])
    if channels not in _OF_FILES and width in _OF_FILES:
        shape = "x".join(str(size) if isinstance(size, int) else "?" for size in dims)
        raise UnsupportedModelError(
            f"the model takes images with the channels last ({shape}); they must come first (NxCxHxW): put a Transpose "
            "in front, or convert the model again with channels first"
        )
    return channels, height, width


def read_images(
    images: Images,
    options: DataOptions,
    model: nn.Module | ExportedProgram | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Return the images, brought to the size and the channels that the model takes; arrays by input as they are.

    Raises:
        DataError: they are missing, unreadable, or not what the model takes.
        UnsupportedModelError: the model takes images in another form.
    """
    arrays = arrays_for(images, model)
    if arrays is not None:
        if options.mean or options.std or options.image_size or options.channels:
            raise UsageError("arrays are taken as they are: `mean`, `std`, `image_size`, `channels` are for images")
        name = str(images) if isinstance(images, str | os.PathLike) else "the arrays given"
        samples = samples_for(arrays, model, name)
        return samples if options.limit is None else samples.sample(options.limit, 0)
    source = _read(images, options, model, progress)
    if model is not None and isinstance(source, ImageSource):
        _require_shape(model, source, None)
    return source


def _read(
    images: Any,
    options: DataOptions,
    model: nn.Module | ExportedProgram | None,
    progress: Callable[[int, int], None] | None,
) -> Source:
    if isinstance(images, ImageSource | Samples):
        return images
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu().float().numpy() if images.is_floating_point() else images.cpu().numpy()
    if isinstance(images, np.ndarray):
        return _from_array(images)
    channels, size = expected_images(model) if model is not None else (None, None)
    channels = options.channels or channels or 3
    if channels not in _OF_FILES:
        raise DataError(f"the model takes images of {channels} channels; images from files have 1 or 3")
    return load_images(
        Path(images) if "::" not in str(images) else str(images),
        image_size=options.image_size or size,
        channels=channels,
        mean=options.mean,
        std=options.std,
        limit=options.limit,
        progress=progress,
    )


def capture_on(
    model: nn.Module | ExportedProgram, source: Source, example_inputs: tuple[Any, ...] | None = None
) -> CapturedModule:
    """Capture a model on the first images, and make sure that it takes them in batches of any size.

    Args:
        model: a module, an exported program or a captured module.
        source: images, or arrays for all inputs, as the model is to see them.
        example_inputs: the arguments of one call to capture with, instead of images.

    Raises:
        DataError: the model does not take these images.
        CaptureError: the model cannot be captured, or for one batch size alone.
        UnsupportedModelError: the model takes something else than one input of images, or computes in another precision
            than float32.
    """
    batch = as_batch(source.batch(np.arange(_EXAMPLES) % len(source)))
    given = tensors_of(batch)
    _require_float32(model)
    if isinstance(source, ImageSource):
        _require_shape(model, source, example_inputs)
    if isinstance(model, ExportedProgram):
        if not has_sizes_of((module := module_of(model)).graph, given):
            _require_taken(module, given, source)
        captured = capture(model, given)
    elif isinstance(model, CapturedModule):
        captured = at_sizes(model, given)
    else:
        _require_taken(model, _call(given, example_inputs), source)
        captured = capture(model, example_inputs or given)
    _require_any_batch(captured, [tensors_of(batch[:1]), tensors_of(batch[1:2])])
    return captured


def refuse_fixed_batch(module: CapturedModule, purpose: str) -> None:
    """Do nothing where a captured module takes batches of any size.

    Raises:
        UnsupportedModelError: its input has one batch size; the message says what others are needed for.
    """
    if (size := captured_batch(module)) is not None:
        raise UnsupportedModelError(
            f"the model takes batches of exactly {size}, {purpose}: make it independent of the batch size (look for "
            "shapes written as numbers in its forward)"
        )


def _from_array(array: np.ndarray) -> ImageSource:
    """Images that are normalized already: they become the network's input as they are."""
    if array.ndim != 4 or array.shape[1] not in _OF_FILES or not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"an array of images must be floating point of shape (N, 3, H, W) or (N, 1, H, W), as the model takes it; "
            f"got {array.dtype} {array.shape}. For pixels in 0..255 use graphprune.load_images on an .npz file"
        )
    if not len(array):
        raise DataError("the array of images is empty: there is nothing to learn from")
    if not np.isfinite(array).all():
        raise DataError("the array of images holds values that are not finite: look at how they were normalized")
    pixels = np.ascontiguousarray(array.transpose(0, 2, 3, 1), dtype=np.float32)
    preprocess = Preprocess.of(pixels.shape[1:3], array.shape[1], mean=(0.0,), std=(1.0,))
    return ImageSource(pixels, preprocess, name="the array given")


def _require_float32(model: nn.Module | ExportedProgram) -> None:
    """Refuse what onnxruntime has no convolutions for, before it is trained."""
    tensors: Iterable[tuple[str, torch.Tensor]]
    tensors = model.named_parameters() if isinstance(model, nn.Module) else model.state_dict.items()
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UnsupportedModelError(
                f"the model computes in {str(tensor.dtype).removeprefix('torch.')} ({name}), and what is delivered in "
                "float32: convert it with model.float(), before it is exported"
            )


def _require_shape(
    model: nn.Module | ExportedProgram, source: ImageSource, example_inputs: tuple[Any, ...] | None
) -> None:
    """Refuse images of another size than a graph, or the example inputs, were made for."""
    dims: tuple[Any, ...] | None = None
    if describe_inputs(model) is not None:
        channels, size = expected_images(model)
        dims = (channels, *(size or (None, None)))
    elif example_inputs:
        tensors = [leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, torch.Tensor)]
        if len(tensors) != 1 or not any(tensors[0] is argument for argument in example_inputs):
            raise UnsupportedModelError(
                f"only a model with a single input of images can be learned from: example_inputs hold {len(tensors)} "
                "tensors and not one"
            )
        dims = tuple(tensors[0].shape[1:])
    given = source.preprocess.input_shape
    if dims is not None and (len(dims) != 3 or any(d not in (None, n) for d, n in zip(dims, given, strict=True))):
        wanted = "x".join("?" if dim is None else str(dim) for dim in dims)
        raise DataError(
            f"the model takes images of {wanted} (channels x height x width), those of {source.name} are "
            f"{'x'.join(map(str, given))}: set `image_size`, or give other images"
        )


def _call(given: tuple[torch.Tensor, ...], example_inputs: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The arguments of a call with these tensors: with flags and the like where the examples have them."""
    following = iter(given)
    return tuple(next(following) if isinstance(x, torch.Tensor) else x for x in example_inputs or given)


def _require_taken(model: nn.Module, inputs: tuple[Any, ...], source: Source) -> None:
    """Run the module on a few images, for an error in the model's own words."""
    try:
        with evaluation(model):
            run(model, inputs)
    except Exception as error:  # the user's own forward: it may raise anything
        if not isinstance(source, ImageSource):
            shapes = ", ".join(
                f"'{name}' {dims_text([n or None for n in shape])}" for name, shape in source.shapes.items()
            )
            raise DataError(
                f"the model does not take the arrays of {source.name} ({shapes}): {one_line(error)}"
            ) from error
        shape = "x".join(map(str, source.preprocess.input_shape))
        raise DataError(
            f"the model does not take images of {shape} (channels x height x width) from {source.name}: "
            f"{one_line(error)}; are `image_size` and `channels` right?"
        ) from error


def _require_any_batch(captured: CapturedModule, samples: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """A graph with one batch size written into it gives other results, or none, for another.

    Outputs are learned sample by sample: all of them hold the samples along their first dimension.
    """
    problem, found = "", []
    try:
        found = layouts(captured, samples)
    except (RuntimeError, ValueError, IndexError) as error:
        problem = f" ({one_line(error)})"
    if problem or any(layout.dims is None for layout in found):
        raise CaptureError(
            f"the model gives other results for another batch size, or takes only one{problem}: export it with a free "
            'batch, as in torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim("batch")},))'
        )
    for number, layout in enumerate(found):
        if layout.dims != (0,):
            where = (
                f"has the batch along dimension {layout.dims[0]}" if layout.dims else "does not depend on the images"
            )
            shape = "x".join(map(str, layout.shape)) or "a single number"
            raise UnsupportedModelError(
                f"output {number} of the model ({shape} for two images) {where}: let the model return outputs with the "
                "batch first, and leave the others out"
            )

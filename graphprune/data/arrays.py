"""Images in a NumPy file.

.npy: the images. .npz: the images under `images`, `x`, `X`, `data` or `arr_0` (or the only array of three
or four dimensions), and, for reporting accuracy only, integers under `labels` or `y`.
Shapes: (N, H, W, C), (N, C, H, W) or (N, H, W), C being 1, 3 or (with alpha, composited on white) 4.
Values: uint8 in 0..255, or floating point in 0..1.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from graphprune.data.decode import resize_and_crop
from graphprune.data.preprocess import Images
from graphprune.passes.errors import DataError

_IMAGE_KEYS = ("images", "x", "X", "data", "arr_0")
_LABEL_KEYS = ("labels", "y")
# Pillow's weights of red, green and blue in luminance (ITU-R 601-2), in 1/65536.
_LUMINANCE = np.array([19595, 38470, 7471], np.int64)


@dataclass(frozen=True)
class ArrayFile:
    """Images and labels as a file holds them, brought to (N, H, W, C)."""

    images: Images
    labels: NDArray[np.int64] | None


def is_array_file(path: Path) -> bool:
    """Return whether the name says that this is a NumPy file."""
    return path.suffix.lower() in (".npy", ".npz")


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz file by name; that of a .npy file has the name "".

    Raises:
        DataError: the file is missing or broken.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        # Never pickle: an array of objects could run code.
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, Mapping) else {"": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise DataError(f"{path} cannot be read as arrays: {reason}") from error


def read_array_file(path: Path, channels: int) -> ArrayFile:
    """Return the images of a .npy or .npz file with this number of channels.

    Raises:
        DataError: the file is missing or broken, or its arrays are no images.
    """
    arrays = load_arrays(path)
    raw = _find_images(arrays, path)
    labels = _find_labels(arrays, len(raw), path)
    return ArrayFile(_with_channels(_channels_last(raw, path), channels), labels)


def resize_array(images: Images, size: tuple[int, int], name: str) -> Images:
    """Return the images at this (height, width), resized as files are."""
    if images.shape[1:3] == size:
        return images
    if images.dtype != np.uint8:
        raise DataError(
            f"images in {name} are {images.shape[1]}x{images.shape[2]} and floating-point arrays are not resized: "
            f"store them as {size[0]}x{size[1]} or as uint8"
        )
    resized = np.empty((len(images), *size, images.shape[3]), np.uint8)
    for index, pixels in enumerate(images):
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        resized[index] = np.asarray(resize_and_crop(image, size)).reshape(resized.shape[1:])
    return resized


def _find_images(arrays: Mapping[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    candidates = [name for name in arrays if arrays[name].ndim in (3, 4)]
    named = [name for name in ("", *_IMAGE_KEYS) if name in arrays]
    if not named and len(candidates) != 1:
        held = ", ".join(f"{name} {arrays[name].shape}" for name in arrays) or "nothing"
        raise DataError(f"{path} holds {held}: the images must be named one of {', '.join(_IMAGE_KEYS)}")
    return arrays[named[0] if named else candidates[0]]


def _find_labels(arrays: Mapping[str, NDArray[Any]], count: int, path: Path) -> NDArray[np.int64] | None:
    for name in _LABEL_KEYS:
        if name in arrays:
            labels = arrays[name]
            if labels.shape not in ((count,), (count, 1)) or not np.issubdtype(labels.dtype, np.integer):
                raise DataError(
                    f"{name} in {path} is {labels.dtype} of shape {labels.shape}: it must be {count} integers, "
                    "one an image"
                )
            if count and labels.min() < 0:
                raise DataError(f"{name} in {path} holds {labels.min()}: labels count from 0")
            return labels.reshape(count).astype(np.int64)
    return None


def _channels_last(raw: NDArray[Any], path: Path) -> Images:
    shape = raw.shape
    if raw.ndim == 3 and shape[2] in (3, 4):
        raise DataError(
            f"the array in {path} has shape {shape}, that of one image: images are (N, H, W, C), stack them"
        )
    if raw.ndim == 3:
        raw = raw[..., None]
    elif raw.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        raw = raw.transpose(0, 2, 3, 1)
    if raw.ndim != 4 or raw.shape[3] not in (1, 3, 4):
        raise DataError(f"the array in {path} has shape {shape}: images are (N, H, W, C), (N, C, H, W) or (N, H, W)")
    if 0 in raw.shape:
        raise DataError(f"the array in {path} has shape {shape}: there is no image in it")
    if raw.dtype == np.uint8:
        return np.ascontiguousarray(raw, np.uint8)
    if not np.issubdtype(raw.dtype, np.floating):
        raise DataError(f"the array in {path} is {raw.dtype}: images are uint8 in 0..255 or floating point in 0..1")
    if not np.isfinite(raw).all():
        raise DataError(f"the array in {path} holds values that are not finite")
    return np.ascontiguousarray(raw, np.float32)


def _with_channels(images: Images, channels: int) -> Images:
    if images.shape[3] == 4:
        images = _on_white(images)
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return images.repeat(3, axis=3)
    if images.dtype == np.uint8:
        weighted = images.astype(np.int64) @ _LUMINANCE
        return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]
    return (images @ (_LUMINANCE / 65536).astype(np.float32))[..., None].astype(np.float32)


def _on_white(images: Images) -> Images:
    white = 255.0 if images.dtype == np.uint8 else 1.0
    alpha = images[..., 3:].astype(np.float32) / white
    composited = images[..., :3] * alpha + white * (1 - alpha)
    if images.dtype == np.uint8:
        return np.rint(composited).astype(np.uint8)
    return composited.astype(np.float32)

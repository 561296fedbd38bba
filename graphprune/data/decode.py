"""From the bytes of image files to one uint8 array.

Every image is brought to the channels and the size asked for:
- palette, CMYK, gray-scale and 16-bit images are converted; of an animation the first frame is taken;
- transparent images are composited on white, the page that they are usually drawn on;
- the orientation tag of photographs is not applied, as usual in evaluation pipelines;
- another size: the shorter side is resized (bilinear, antialiased), then the center is cropped.
"""

import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from graphprune.data.files import FileSet
from graphprune.passes.errors import DataError

logger = logging.getLogger("graphprune")

# What a damaged file makes Pillow, zlib and zipfile raise; SyntaxError is Pillow's for a broken PNG.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
_MOST_UNREADABLE = 0.1
_MOST_NAMED = 20
# The decoder of smaller images is shorter than the switch of threads.
_WORTH_THREADS_PIXELS = 128 * 128
_CHUNK = 256


@dataclass(frozen=True)
class Decoded:
    """What was read of a set of files.

    Shapes: images: (number of kept, height, width, channels); kept: indices into the paths that were given.
    """

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    skipped: tuple[str, ...]


def decode_image(data: bytes, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return one image.

    Shapes: size: (height, width), or None to keep the image's own; returns (height, width, channels).
    """
    with Image.open(io.BytesIO(data)) as image:
        converted = _to_channels(image, channels)
        if size is not None and (converted.height, converted.width) != size:
            converted = resize_and_crop(converted, size)
        pixels = np.asarray(converted)
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known scale")
    if image.mode.startswith("I"):  # 16 bits a pixel, whichever container Pillow chose
        eight_bits = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(eight_bits).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        page = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(page, opaque).convert(mode)
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the center of the image at this (height, width), the image being scaled just to cover it."""
    height, width = size
    if image.height * width <= image.width * height:
        scaled = (max(width, image.width * height // image.height), height)
    else:
        scaled = (width, max(height, image.height * width // image.width))
    resized = image.resize(scaled, Image.Resampling.BILINEAR)
    left = round((scaled[0] - width) / 2)
    top = round((scaled[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def decode_files(
    files: FileSet,
    paths: Sequence[str],
    channels: int,
    size: tuple[int, int] | None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Return the images of these paths; unreadable ones are named in the log, skipped and counted.

    Raises:
        DataError: more than a tenth is unreadable, the images would not fit into memory, or they differ
            in size and no size was given.
    """
    failures: dict[int, str] = {}
    first, example = _first_readable(files, paths, channels, size, failures)
    shape = example.shape
    _check_memory(files, len(paths), shape)
    images = np.empty((len(paths), *shape), np.uint8)

    def decode_chunk(start: int) -> int:
        stop = min(start + _CHUNK, len(paths))
        for index in range(max(start, first), stop):
            try:
                pixels = decode_image(files.read(paths[index]), channels, size)
            except _UNREADABLE as error:
                failures[index] = _reason(error)
                continue
            if pixels.shape != shape:
                raise _size_mismatch(files, paths[first], shape, paths[index], pixels.shape)
            images[index] = pixels
        return stop

    chunks = range(0, len(paths), _CHUNK)
    for done in _run(decode_chunk, chunks, threaded=shape[0] * shape[1] >= _WORTH_THREADS_PIXELS):
        if progress is not None:
            progress(done, len(paths))
    _report(files, paths, failures)
    kept = np.array([index for index in range(len(paths)) if index not in failures], np.int64)
    skipped = tuple(paths[index] for index in sorted(failures))
    return Decoded(_compact(images, kept), kept, skipped)


def _first_readable(
    files: FileSet,
    paths: Sequence[str],
    channels: int,
    size: tuple[int, int] | None,
    failures: dict[int, str],
) -> tuple[int, NDArray[np.uint8]]:
    for index, path in enumerate(paths):
        try:
            return index, decode_image(files.read(path), channels, size)
        except _UNREADABLE as error:
            failures[index] = _reason(error)
    raise _too_many(files, paths, failures)


def _compact(images: NDArray[np.uint8], kept: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Move the kept images to the front, in place: a copy would need the memory twice."""
    for position, index in enumerate(kept):
        if position != index:
            images[position] = images[index]
    return images[: len(kept)]


def _run(work: Callable[[int], int], chunks: Sequence[int], *, threaded: bool) -> Iterator[int]:
    if not threaded:
        yield from map(work, chunks)
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(work, chunks)


def _report(files: FileSet, paths: Sequence[str], failures: dict[int, str]) -> None:
    if not failures:
        return
    if len(failures) > _MOST_UNREADABLE * len(paths):
        raise _too_many(files, paths, failures)
    for index in sorted(failures)[:_MOST_NAMED]:
        logger.warning("skipped unreadable image %s: %s", paths[index], failures[index])
    if len(failures) > _MOST_NAMED:
        logger.warning("and %d more unreadable images", len(failures) - _MOST_NAMED)
    logger.warning("%d of %d images in %s are unreadable and were skipped", len(failures), len(paths), files.name)


def _too_many(files: FileSet, paths: Sequence[str], failures: dict[int, str]) -> DataError:
    index = min(failures)
    return DataError(
        f"{len(failures)} of {len(paths)} images in {files.name} are unreadable, more than a tenth; "
        f"the first is {paths[index]}: {failures[index]}"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    return " ".join(str(error).split()) or type(error).__name__


def _size_mismatch(
    files: FileSet, path: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]
) -> DataError:
    return DataError(
        f"images in {files.name} differ in size ({path} is {shape[0]}x{shape[1]}, {other} is "
        f"{other_shape[0]}x{other_shape[1]}): give the network's size, as `image_size`"
    )


def _check_memory(files: FileSet, count: int, shape: tuple[int, ...]) -> None:
    """Refuse what would be killed for lack of memory halfway through the decoding."""
    needed = count * int(np.prod(shape))
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.8 * installed:
        most = int(0.8 * installed / np.prod(shape))
        raise DataError(
            f"{count} images of {shape[0]}x{shape[1]} in {files.name} need {needed / 1e9:.1f} GB of memory and "
            f"{installed / 1e9:.1f} GB are installed: limit them to {most} or fewer"
        )

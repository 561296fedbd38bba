"""A set of images in memory, and how it is loaded."""

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphprune.data.arrays import is_array_file, read_array_file, resize_array
from graphprune.data.decode import decode_files
from graphprune.data.files import class_labels, open_files
from graphprune.data.preprocess import Images, Preprocess
from graphprune.data.samples import held_out
from graphprune.passes.errors import DataError, UsageError

logger = logging.getLogger("graphprune")

# Which images are used when their number is limited; fixed, so that the same command sees the same ones.
_LIMIT_SEED = 0

# Gives the preprocessing once the size of the images is known.
PreprocessOfSize = Callable[[tuple[int, int]], Preprocess]


class ImageSource:
    """Images in memory as stored, and normalized batches of them.

    A subset or split shares the pixels of the whole and only has its own indices.

    Attributes:
        pixels: all stored images, (number, height, width, channels), uint8 or float32.
        indices: which of `pixels` belong to this source, in order.
        preprocess: how they become the network's input.
        labels: class of every image of this source, or None. For reporting accuracy, never for training.
        class_names: name of every class; empty without labels.
        name: where the images came from, for messages.
        skipped: paths of unreadable images that were left out.
    """

    def __init__(
        self,
        pixels: Images,
        preprocess: Preprocess,
        *,
        indices: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        class_names: Sequence[str] = (),
        name: str = "images",
        skipped: Sequence[str] = (),
    ) -> None:
        expected = (*preprocess.image_size, preprocess.channels)
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise DataError(f"{name}: images of shape {pixels.shape[1:]} where {expected} is expected")
        self.pixels = pixels
        self.indices = np.arange(len(pixels)) if indices is None else indices
        if labels is not None and labels.shape != self.indices.shape:
            raise DataError(f"{name}: {len(labels)} labels for {len(self.indices)} images")
        self.preprocess = preprocess
        self.labels = labels
        self.class_names = tuple(class_names)
        self.name = name
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of what is fed, of the only input (""); 0 where the images stand."""
        return {"": (0, *self.preprocess.input_shape)}

    def batch(self, positions: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return these images of this source, normalized.

        Shapes: returns (batch, channels, height, width).
        """
        return self.preprocess(self.pixels[self.indices[positions]])

    def batches(self, batch_size: int, *, fixed: bool = False) -> Iterator[NDArray[np.float32]]:
        """Yield all images in order, normalized; the last batch is smaller, or if `fixed` filled up from the start."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size if fixed else min(start + batch_size, len(self))
            yield self.batch(np.arange(start, stop) % len(self))

    def subset(self, positions: NDArray[np.int64]) -> "ImageSource":
        """Return a source of these images of this one, in this order."""
        return ImageSource(
            self.pixels,
            self.preprocess,
            indices=self.indices[positions],
            labels=None if self.labels is None else self.labels[positions],
            class_names=self.class_names,
            name=self.name,
            skipped=self.skipped,
        )

    def sample(self, number: int, seed: int) -> "ImageSource":
        """Return a source of so many images of this one, or all, drawn at random and in random order.

        Folders come class by class: the first images are no sample, and neither are the first of a sorted one.
        """
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:number])

    def split(self, fraction: float, seed: int) -> tuple["ImageSource", "ImageSource"]:
        """Return the rest and a held-out random part; see `held_out`."""
        rest, held = held_out(len(self), fraction, seed, self.name)
        return self.subset(rest), self.subset(held)

    def checksum(self) -> int:
        """Return a number that changes when the images or their order do."""
        stored = zlib.crc32(np.ascontiguousarray(self.pixels).data)
        return zlib.crc32(self.indices.data, stored)


def load_images(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
    normalized: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSource:
    """Read images once, into memory.

    Args:
        path: a folder of images, nested or not; a zip of one, or a folder inside a zip
            (`images.zip::train`), read in place; or a .npy or .npz array.
        image_size: side of the square, or (height, width), that images of another size are resized and
            cropped to. None keeps the size that all images share.
        channels: 3 or 1; images are converted.
        mean: for pixels scaled to 0..1, one a channel or one for all. Default: ImageNet's, 0.5 for gray.
        std: likewise.
        limit: use only so many images, chosen at random but always the same ones.
        normalized: whether batches of them are what is used, and not the pixels as they are; the log says which.
        progress: called with (images read, images in all).

    Raises:
        DataError: the images are missing, unreadable or of different sizes.
        UsageError: an argument is out of range.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of images is {limit}: it must be at least 1")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    preprocess = partial(Preprocess.of, channels=channels, mean=mean, std=std)
    preprocess(size or (1, 1))  # refuses wrong arguments before minutes are spent on decoding
    started = time.perf_counter()
    if is_array_file(Path(path)):
        source = _from_array_file(Path(path), size, preprocess, limit)
        is_changed = any(source.preprocess.mean) or set(source.preprocess.std) != {1.0}
        if normalized and is_changed:  # else they are taken as they are
            _check_scale(source)
    else:
        source = _from_files(path, size, preprocess, limit, progress)
    _log(source, time.perf_counter() - started, normalized)
    return source


def _from_files(
    path: str | Path,
    size: tuple[int, int] | None,
    preprocess: PreprocessOfSize,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> ImageSource:
    with open_files(path) as files:
        chosen = _choose(len(files.paths), limit)
        channels = preprocess(size or (1, 1)).channels
        decoded = decode_files(files, [files.paths[index] for index in chosen], channels, size, progress)
    classes = class_labels(files.paths)
    return ImageSource(
        decoded.images,
        preprocess(decoded.images.shape[1:3]),
        labels=None if classes is None else classes.labels[chosen[decoded.kept]],
        class_names=() if classes is None else classes.names,
        name=files.name,
        skipped=decoded.skipped,
    )


def _from_array_file(
    path: Path, size: tuple[int, int] | None, preprocess: PreprocessOfSize, limit: int | None
) -> ImageSource:
    held = read_array_file(path, preprocess(size or (1, 1)).channels)
    chosen = _choose(len(held.images), limit)
    images = held.images if limit is None else held.images[chosen]
    images = resize_array(images, size or images.shape[1:3], str(path))
    labels = None if held.labels is None else held.labels[chosen]
    count = 0 if held.labels is None else int(held.labels.max()) + 1
    return ImageSource(
        images,
        preprocess(images.shape[1:3]),
        labels=labels,
        class_names=[str(label) for label in range(count)],
        name=str(path),
    )


def _choose(count: int, limit: int | None) -> NDArray[np.int64]:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(_LIMIT_SEED).choice(count, limit, replace=False))


def _check_scale(source: ImageSource) -> None:
    low, high = float(source.pixels.min()), float(source.pixels.max())
    if source.pixels.dtype != np.uint8 and (low < 0 or high > 1):
        raise DataError(
            f"the floating-point values in {source.name} run from {low:g} to {high:g}, not from 0 to 1: scale them, or "
            "give `mean=0` and `std=1` if they are what the network takes"
        )


def _log(source: ImageSource, seconds: float, normalized: bool) -> None:
    height, width, channels = source.pixels.shape[1:]
    logger.info(
        "data: %d images of %dx%dx%d from %s in %.1f s, %.1f MB in memory",
        *(len(source), height, width, channels, source.name, seconds, source.pixels.nbytes / 1e6),
    )
    logger.info("preprocessing: %s", source.preprocess if normalized else "none, the pixels are taken as they are")
    if source.labels is not None:
        names = ", ".join(source.class_names[:12]) + (", ..." if len(source.class_names) > 12 else "")
        logger.info("labels of %d classes, to report accuracy only: %s", len(source.class_names), names)

"""Batches for training, and for evaluation in order, as torch tensors.

The images of a batch, their crops and their flips are functions of (seed, epoch, step) alone. A killed run
therefore resumes bit for bit from two integers, and two runs of one seed see the same images.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.data.images import ImageSource
from graphprune.passes.errors import DataError, UsageError

# What a stream of random numbers is for; keeps the streams of one seed apart.
_ORDER, _AUGMENTATION = 0, 1


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, drawn anew for every image of every batch.

    Attributes:
        crop: shift by up to an eighth of the height and of the width.
        flip: mirror left and right, half of the images. Switch it off for digits and letters.
        padding: what a shift brings in: the mirrored image, or zeros (black).
        mix: share of the images of a batch that are blended with another one of it, in any ratio. There are no labels
            to blend: the teacher says what it sees. (Beyer et al. 2022, "Knowledge distillation: a good teacher is
            patient and consistent", section 3.1; mixup, Zhang et al. 2018.)
        views: how often an image is in its batch, shifted anew each time and mirrored every other time.
    """

    crop: bool = True
    flip: bool = True
    padding: Literal["reflect", "zero"] = "reflect"
    mix: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        if self.padding not in ("reflect", "zero"):
            raise UsageError(f'padding is {self.padding!r}: it is "reflect" or "zero"')
        if not 0 <= self.mix <= 1:
            raise UsageError(f"mix is {self.mix}: it is a share of the images, between 0 and 1")
        if self.views < 1:
            raise UsageError(f"views is {self.views}: it must be at least 1")
        if self.views > 1 and not (self.crop or self.flip):
            raise UsageError(f"{self.views} views of an image are all the same without --crop and --flip: take one")


NO_AUGMENTATION = Augmentation(crop=False, flip=False)


class TrainingBatches:
    """Endless, shuffled, augmented and normalized batches by epoch and step.

    Every epoch is a new permutation of the images. A last, smaller batch is left out, unless there are
    fewer images than a batch: then all of them are the batch. Where images have several views, they are next to one
    another, and an epoch is as long as with one: it shows so many times fewer images.

    Attributes:
        batch_size: views a batch; never of more images than there are.
        steps_per_epoch: batches an epoch.
    """

    def __init__(
        self, source: ImageSource, batch_size: int, *, seed: int, augmentation: Augmentation | None = None
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size is {batch_size}: it must be at least 1")
        if seed < 0:
            raise UsageError(f"the seed is {seed}: it must be 0 or more")
        if len(source) == 0:
            raise DataError(f"there is no image in {source.name}")
        self._augmentation = Augmentation() if augmentation is None else augmentation
        views = self._augmentation.views
        if batch_size % views:
            raise UsageError(f"a batch of {batch_size} does not divide into images of {views} views each")
        self._images = min(batch_size // views, len(source))  # a batch
        self.batch_size = self._images * views
        self.steps_per_epoch = max(1, len(source) // self.batch_size)
        self.source = source
        self._pixels = torch.from_numpy(source.pixels)
        self._seed = seed
        self._order_pass = -1
        self._order: NDArray[np.int64] = source.indices

    def batch(self, epoch: int, step: int) -> Tensor:
        """Return one batch, whatever was asked for before; both numbers count from 0.

        Shapes: returns (batch_size, channels, height, width).
        """
        random = np.random.default_rng((self._seed, _AUGMENTATION, epoch, step))
        chosen = torch.from_numpy(self.chosen(epoch, step))
        augmented = augment(self._pixels, chosen, self._augmentation, random)
        batch = torch.from_numpy(self.source.preprocess(augmented.numpy()))
        if not self._augmentation.mix:
            return batch
        return blend(batch, self._augmentation.mix, random, self._augmentation.views)

    def chosen(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return which of the source's `pixels` a batch is made of."""
        number, at = divmod(epoch * self.steps_per_epoch + step, len(self.source) // self._images)
        images = self._order_of(number)[at * self._images : (at + 1) * self._images]
        return np.repeat(images, self._augmentation.views)

    def origin(self) -> dict[str, Any]:
        """Return what the batches are drawn from, for a checkpoint."""
        return {"drawn_from": self._drawn_from()}

    def refuse_other(self, origin: dict[str, Any]) -> None:
        """Do nothing where `origin` is that of these batches.

        Raises:
            DataError: it is of other images, another seed, batch size or augmentation.
        """
        drawn_from = self._drawn_from()
        for name, value in drawn_from.items():
            saved = origin["drawn_from"].get(name)
            if saved != value:
                raise DataError(
                    f"cannot resume with {self.source.name}: {name} was {saved} and is {value}; "
                    "resume with the same images and settings, or start anew"
                )

    def _drawn_from(self) -> dict[str, Any]:
        return {
            "images": len(self.source),
            "checksum": self.source.checksum(),
            "seed": self._seed,
            "batch_size": self.batch_size,
            "augmentation": asdict(self._augmentation),
        }

    def _order_of(self, number: int) -> NDArray[np.int64]:
        """The order of the images in a pass over all of them."""
        if number != self._order_pass:
            random = np.random.default_rng((self._seed, _ORDER, number))
            self._order = random.permutation(self.source.indices)
            self._order_pass = number
        return self._order


def evaluation_batches(source: ImageSource, batch_size: int) -> Iterator[Tensor]:
    """Yield all images in order, normalized, as tensors; the last batch may be smaller."""
    return map(torch.from_numpy, source.batches(batch_size))


def augment(pixels: Tensor, chosen: Tensor, augmentation: Augmentation, random: np.random.Generator) -> Tensor:
    """Return the chosen images, cropped and flipped at random.

    A crop of the padded image and a flip only say from which row and column each pixel comes, so both are
    one gather, which also selects the images.

    Shapes: pixels: (images, height, width, channels); chosen: (batch,) indices into pixels, views of one image next to
        one another; returns (batch, height, width, channels).
    """
    batch, height, width = len(chosen), pixels.shape[1], pixels.shape[2]
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    if augmentation.flip:
        first = np.repeat(random.random(batch // augmentation.views) < 0.5, augmentation.views)
        flipped = first ^ (np.arange(batch) % augmentation.views % 2 == 1)
        columns = torch.where(torch.from_numpy(flipped)[:, None], width - 1 - columns, columns)
    if augmentation.crop:
        rows = rows + _shifts(height, batch, random)
        columns = columns + _shifts(width, batch, random)
    row_sources, column_sources = _reflect(rows, height), _reflect(columns, width)
    images = pixels[chosen[:, None, None], row_sources[:, :, None], column_sources[:, None, :]]
    if augmentation.padding == "zero":
        inside = (rows == row_sources)[:, :, None] & (columns == column_sources)[:, None, :]
        images = images * inside[..., None]
    return images


def blend(batch: Tensor, share: float, random: np.random.Generator, views: int = 1) -> Tensor:
    """Return the batch with about `share` of its images blended with another one of it, all views of both alike.

    Shapes: batch: (images * views, ...), normalized; returns the same.
    """
    images = batch.reshape(-1, views, *batch.shape[1:])
    ratios = np.where(random.random(len(images)) < share, random.random(len(images)), 1.0)
    own = torch.from_numpy(ratios).to(batch.dtype).view(-1, *[1] * batch.ndim)
    partners = torch.from_numpy(random.permutation(len(images)))
    return (images * own + images[partners] * (1 - own)).flatten(0, 1)


def _shifts(size: int, batch: int, random: np.random.Generator) -> Tensor:
    most = size // 8
    return torch.from_numpy(random.integers(-most, most, size=(batch, 1), endpoint=True))


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror what lies outside 0..size-1 at the border, without repeating the border itself."""
    return (size - 1) - ((size - 1) - index.abs()).abs()

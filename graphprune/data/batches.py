"""Batches for training, and for evaluation in order, as torch tensors.

The images of a batch, their crops and their flips are functions of (seed, epoch, step) alone. A killed run
therefore resumes bit for bit from two integers, and two runs of one seed see the same images.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.data.images import ImageSource
from graphprune.data.samples import Arrays, Samples
from graphprune.passes.errors import DataError, UsageError

# What a stream of random numbers is for; keeps the streams of one seed apart.
_ORDER, _AUGMENTATION = 0, 1


class Inputs:
    """A batch for a model of several inputs: a tensor for each, in their order.

    Its length is the number of samples, which stand along the first dimension; single numbers are the same for all.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return next(len(tensor) for tensor in self.tensors if tensor.ndim)

    def __getitem__(self, rows: slice) -> "Inputs":
        """These samples."""
        return changed(self, lambda tensor: tensor[rows] if tensor.ndim else tensor)


Batch = Tensor | Inputs
"""Samples as a model takes them: of its only input, or of several."""


def as_batch(arrays: NDArray[Any] | Arrays) -> Batch:
    """Return what a source gives as a batch."""
    if isinstance(arrays, tuple):
        return Inputs(tuple(torch.from_numpy(np.asarray(array, order="C")) for array in arrays))
    return torch.from_numpy(arrays)


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """Return the arguments of a call with a batch."""
    return batch.tensors if isinstance(batch, Inputs) else (batch,)


def changed(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the batch with every tensor of it changed."""
    return Inputs(tuple(change(tensor) for tensor in batch.tensors)) if isinstance(batch, Inputs) else change(batch)


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Return the batch as several, of so many samples at most."""
    return [batch[start : start + size] for start in range(0, len(batch), size)]


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
    """

    crop: bool = True
    flip: bool = True
    padding: Literal["reflect", "zero"] = "reflect"
    mix: float = 0.0

    def __post_init__(self) -> None:
        if self.padding not in ("reflect", "zero"):
            raise UsageError(f'padding is {self.padding!r}: it is "reflect" or "zero"')
        if not 0 <= self.mix <= 1:
            raise UsageError(f"mix is {self.mix}: it is a share of the images, between 0 and 1")


NO_AUGMENTATION = Augmentation(crop=False, flip=False)


class TrainingBatches:
    """Endless, shuffled, augmented and normalized batches by epoch and step; arrays are given as they are.

    Every epoch is a new permutation of the images. A last, smaller batch is left out, unless there are
    fewer images than a batch: then all of them are the batch.

    Attributes:
        batch_size: images a batch; never more than there are.
        steps_per_epoch: batches an epoch.
    """

    def __init__(
        self, source: ImageSource | Samples, batch_size: int, *, seed: int, augmentation: Augmentation | None = None
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size is {batch_size}: it must be at least 1")
        if seed < 0:
            raise UsageError(f"the seed is {seed}: it must be 0 or more")
        if len(source) == 0:
            raise DataError(f"there is no image in {source.name}")
        self.batch_size = min(batch_size, len(source))
        self.steps_per_epoch = len(source) // self.batch_size
        self.source = source
        self._pixels = torch.from_numpy(source.pixels) if isinstance(source, ImageSource) else None
        self._seed = seed
        self._augmentation = Augmentation() if augmentation is None else augmentation
        self._order_epoch = -1
        self._every = source.indices if isinstance(source, ImageSource) else np.arange(len(source))
        self._order: NDArray[np.int64] = self._every

    def batch(self, epoch: int, step: int) -> Batch:
        """Return one batch, whatever was asked for before; both numbers count from 0.

        Shapes: returns (batch_size, channels, height, width) for images.
        """
        chosen = self.chosen(epoch, step)
        if not isinstance(self.source, ImageSource) or self._pixels is None:
            return as_batch(self.source.batch(chosen))
        random = np.random.default_rng((self._seed, _AUGMENTATION, epoch, step))
        augmented = augment(self._pixels, torch.from_numpy(chosen), self._augmentation, random)
        batch = torch.from_numpy(self.source.preprocess(augmented.numpy()))
        return blend(batch, self._augmentation.mix, random) if self._augmentation.mix else batch

    def chosen(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return which of the source's `pixels`, or of its samples, a batch is made of."""
        start = step * self.batch_size
        return self._order_of(epoch)[start : start + self.batch_size]

    def origin(self) -> dict[str, Any]:
        """Return what the batches are drawn from, for a checkpoint."""
        return {"drawn_from": self._drawn_from}

    def refuse_other(self, origin: dict[str, Any]) -> None:
        """Do nothing where `origin` is that of these batches.

        Raises:
            DataError: it is of other images, another seed, batch size or augmentation.
        """
        drawn_from = self._drawn_from
        for name, value in drawn_from.items():
            saved = origin["drawn_from"].get(name)
            if saved != value:
                raise DataError(
                    f"cannot resume with {self.source.name}: {name} was {saved} and is {value}; "
                    "resume with the same images and settings, or start anew"
                )

    @cached_property
    def _drawn_from(self) -> dict[str, Any]:
        return {
            "images": len(self.source),
            "checksum": self.source.checksum(),
            "seed": self._seed,
            "batch_size": self.batch_size,
            "augmentation": asdict(self._augmentation),
        }

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._order_epoch:
            random = np.random.default_rng((self._seed, _ORDER, epoch))
            self._order = random.permutation(self._every)
            self._order_epoch = epoch
        return self._order


def evaluation_batches(source: ImageSource | Samples, batch_size: int) -> Iterator[Batch]:
    """Yield all images in order, normalized, as tensors, or all samples; the last batch may be smaller."""
    return map(as_batch, source.batches(batch_size))


def augment(pixels: Tensor, chosen: Tensor, augmentation: Augmentation, random: np.random.Generator) -> Tensor:
    """Return the chosen images, cropped and flipped at random.

    A crop of the padded image and a flip only say from which row and column each pixel comes, so both are
    one gather, which also selects the images.

    Shapes: pixels: (images, height, width, channels); chosen: (batch,) indices into pixels;
        returns (batch, height, width, channels).
    """
    batch, height, width = len(chosen), pixels.shape[1], pixels.shape[2]
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    if augmentation.flip:
        flipped = torch.from_numpy(random.random(batch) < 0.5)[:, None]
        columns = torch.where(flipped, width - 1 - columns, columns)
    if augmentation.crop:
        rows = rows + _shifts(height, batch, random)
        columns = columns + _shifts(width, batch, random)
    row_sources, column_sources = _reflect(rows, height), _reflect(columns, width)
    images = pixels[chosen[:, None, None], row_sources[:, :, None], column_sources[:, None, :]]
    if augmentation.padding == "zero":
        inside = (rows == row_sources)[:, :, None] & (columns == column_sources)[:, None, :]
        images = images * inside[..., None]
    return images


def blend(batch: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Return the batch with about `share` of its images blended with another one of it.

    Shapes: batch: (images, ...), normalized; returns the same.
    """
    ratios = np.where(random.random(len(batch)) < share, random.random(len(batch)), 1.0)
    own = torch.from_numpy(ratios).to(batch.dtype).view(-1, *[1] * (batch.ndim - 1))
    partners = torch.from_numpy(random.permutation(len(batch)))
    return batch * own + batch[partners] * (1 - own)


def _shifts(size: int, batch: int, random: np.random.Generator) -> Tensor:
    most = size // 8
    return torch.from_numpy(random.integers(-most, most, size=(batch, 1), endpoint=True))


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror what lies outside 0..size-1 at the border, without repeating the border itself."""
    return (size - 1) - ((size - 1) - index.abs()).abs()

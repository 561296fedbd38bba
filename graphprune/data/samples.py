"""What any model is fed with, sample by sample: an array for every input, or images in the form that it takes."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.errors import DataError, UsageError

Arrays = tuple[NDArray, ...]

_CHUNK = 256  # samples


class Samples:
    """Samples of all inputs of a model, in the order of the inputs; a subset shares the numbers of the whole.

    Attributes:
        name: where they came from, for messages.
        shapes: by input, the shape of what is fed; 0 where the samples stand.
        labels, class_names, skipped, preprocess: what images have beside their pixels, and arrays have not.
    """

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    preprocess: None = None

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], Arrays],
        count: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        name: str,
        indices: NDArray[np.int64] | None = None,
    ) -> None:
        """Args: read: gives the arrays of some samples, by their places; count: how many there are in all."""
        self.name = name
        self.shapes = dict(shapes)
        self._read, self._count = read, count
        self._indices = np.arange(count) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, positions: NDArray[np.int64] | slice) -> Arrays:
        """Return these samples, an array for every input."""
        return self._read(self._indices[positions])

    def batches(self, batch_size: int, *, fixed: bool = False) -> Iterator[Arrays]:
        """Yield all samples in order; the last batch is smaller, or if `fixed` filled up from the start."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size if fixed else min(start + batch_size, len(self))
            yield self.batch(np.arange(start, stop) % len(self))

    def subset(self, positions: NDArray[np.int64]) -> "Samples":
        """Return these samples of this source, in this order."""
        return Samples(self._read, self._count, self.shapes, name=self.name, indices=self._indices[positions])

    def sample(self, number: int, seed: int) -> "Samples":
        """Return so many samples, or all, drawn at random and in random order."""
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:number])

    def split(self, fraction: float, seed: int) -> tuple["Samples", "Samples"]:
        """Return the rest and a held-out random part; see `held_out`."""
        rest, held = held_out(len(self), fraction, seed, self.name)
        return self.subset(rest), self.subset(held)

    def checksum(self) -> int:
        """Return a number that changes when the samples or their order do."""
        found = 0
        for batch in self.batches(_CHUNK):
            for array in batch:
                found = zlib.crc32(np.ascontiguousarray(array).data, found)
        return found


def held_out(count: int, fraction: float, seed: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of so many samples are the rest and which are held out; the same seed gives the same parts.

    Args:
        count: how many samples there are.
        fraction: share of the held-out part; both parts get at least one.
        seed: of the random choice.
        name: where the samples came from.

    Raises:
        UsageError: the fraction is not between 0 and 1.
        DataError: there are fewer than two samples.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the held-out share is {fraction}: it must be between 0 and 1")
    if count < 2:
        raise DataError(f"{name} has {count} image(s): two are needed to hold some out")
    held = min(max(1, round(fraction * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def samples_of_arrays(arrays: Mapping[str, NDArray], axes: Sequence[int | None], count: int, name: str) -> Samples:
    """Return the samples that arrays hold.

    Args:
        arrays: by input, in the order of the inputs.
        axes: along which dimension of each the samples stand; None where every sample gets the whole array.
        count: how many samples there are.
        name: where they came from.
    """
    held = tuple(arrays.values())

    def read(at: NDArray[np.int64]) -> Arrays:
        return tuple(a if axis is None else a.take(at, axis) for a, axis in zip(held, axes, strict=True))

    shapes = {
        key: tuple(0 if at == axis else size for at, size in enumerate(array.shape))
        for (key, array), axis in zip(arrays.items(), axes, strict=True)
    }
    return Samples(read, count, shapes, name=name)

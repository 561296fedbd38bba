"""How far the numbers of a changed model are from those it was made from, each part of an output by its own spread.

    distance of a part = sum (a - b)^2 / sum (a - mean of its channel)^2         over its channels and all samples
    distance of an output = that of its worst part

Parts are what the file concatenates; where it does not, the indices of a dimension along which scales are unlike, in
groups of like ones. One figure for boxes of 640 pixels and scores between 0 and 1 would be that of the boxes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from graphprune.verification.closeness import without_common_faults
from graphprune.verification.positions import Fold

__all__ = ["UNLIKE", "Distance", "PartDistance", "Parts", "parts_of"]

Parts = Mapping[int, Sequence[int]]
"""Sizes of the parts of an output along some of its dimensions."""

#: Scales are unlike where one is so many times the other: a tensor of both spends three of its eight bits on that.
UNLIKE = 8.0
_SAME = 1e-12  # share of the squares that rounding leaves of a spread of 0
_DEAD = 1e-6  # of the largest scale: what counts as zero throughout


@dataclass(frozen=True)
class PartDistance:
    """The distance of one part of an output.

    Attributes:
        output: index of the output.
        where: which part, in words; "" if it is the whole output.
        distance: squared distance relative to the spread; of a number of elements, the share of too many or too few.
        scale: root of the mean square of the reference.
    """

    output: int
    where: str
    distance: float
    scale: float = 0.0


@dataclass
class _Sums:
    """What was seen of an output: at each position the sums of squared differences, of squares, and of the numbers."""

    fold: Fold = field(default_factory=Fold)
    sums: np.ndarray | None = None  # (3, positions...)
    count: int = 0  # numbers in these
    first_dimension: int = 0
    ours: int = 0  # elements in all
    theirs: int = 0
    lost: int = 0  # elements that have no counterpart

    def add(self, gap: np.ndarray, square: np.ndarray, total: np.ndarray, samples: int) -> None:
        shape = self.fold.common(gap.shape)
        new = np.stack([Fold.to(each, shape, np.sum) for each in (gap, square, total)])
        old = 0.0 if self.sums is None else np.stack([Fold.to(each, shape, np.sum) for each in self.sums])
        self.sums = old + new
        self.count += samples * gap.size


class Distance:
    """Accumulates the distance of every output over batches.

    Of outputs that are not floating-point (a class index, say), it is the share of elements that differ. A batch in
    which one model gives numbers where the other gives none (NaN, infinity) counts as wholly wrong, and so does an
    output of another shape; of a list of objects only those that are too many or few.

    Args:
        parts: for each output what it is concatenated of, where that is known.
        counted: outputs of which only the number of elements is compared.
    """

    def __init__(self, parts: Sequence[Parts] = (), counted: Collection[int] = ()) -> None:
        self._parts, self._counted = parts, frozenset(counted)
        self._sums: dict[int, _Sums] = {}
        self.faults = 0

    def see(
        self, dense: Sequence[np.ndarray], slim: Sequence[np.ndarray], rows: int, *, batch: int | None = None
    ) -> None:
        """Take in the outputs of a batch, of which the first `rows` samples count; `batch` are those that were run."""
        for index, (a, b) in enumerate(zip(dense, slim, strict=True)):
            sums = self._sums.setdefault(index, _Sums())
            by_sample = a.ndim > 0 and len(a) == (batch or rows)
            if by_sample and b.ndim > 0 and len(b) == len(a):
                a, b = a[:rows], b[:rows]
            sums.ours += a.size
            sums.theirs += b.size
            if a.shape != b.shape:
                is_list = index in self._counted or (not by_sample and a.shape[1:] == b.shape[1:])
                sums.lost += abs(a.size - b.size) if is_list else max(a.size, b.size)
            elif index not in self._counted and a.size:
                sums.first_dimension = int(by_sample)
                x, y = (a, b) if by_sample else (a[None], b[None])
                found = self._of_numbers(x, y) if np.issubdtype(a.dtype, np.floating) else _of_labels(x, y)
                sums.add(*found, len(x))

    def _of_numbers(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = a.astype(np.float64), b.astype(np.float64)
        broken = not (np.isfinite(x).all() and np.isfinite(y).all())
        if broken:
            before = np.isfinite(x).sum()
            x, y = without_common_faults(x, y)
            self.faults += int(np.isfinite(x).sum() - before)
            same = np.isfinite(x) & np.isfinite(y)
            broken = not same.all()
            x, y = np.where(same, x, 0), np.where(same, y, 0)
        gap, square = ((x - y) ** 2).sum(axis=0), (x**2).sum(axis=0)
        if broken:
            gap = np.maximum(gap, np.maximum(square, 1.0))
        return gap, square, x.sum(axis=0)

    @property
    def parts(self) -> list[PartDistance]:
        """The distance of every part that could be compared."""
        return [part for index, sums in self._sums.items() for part in self._parts_of_output(index, sums)]

    def _parts_of_output(self, index: int, sums: _Sums) -> list[PartDistance]:
        found = []
        if sums.lost:
            where = f"{sums.theirs} elements instead of {sums.ours}"
            found.append(PartDistance(index, where, sums.lost / max(sums.ours, sums.theirs)))
        elif index in self._counted and sums.ours:
            found.append(PartDistance(index, "", 0.0))
        if sums.sums is None:
            return found
        known = self._parts[index] if index < len(self._parts) else {}
        samples = sums.count // sums.sums[0].size
        scales = np.sqrt(sums.sums[1] / samples)
        groups = parts_of(scales, {dim - sums.first_dimension: sizes for dim, sizes in known.items()})
        for axis, indices in groups:
            inside = sums.sums if axis is None else sums.sums.take(indices, axis=axis + 1)
            where = "" if axis is None else f"{_ranges(indices)} of dimension {axis + sums.first_dimension}"
            found.append(PartDistance(index, where, *_distance(inside, axis, samples)))
        return found

    @property
    def value(self) -> float:
        """The mean over the outputs; 0 where none could be compared."""
        each: dict[int, float] = {}
        for part in self.parts:
            each[part.output] = max(each.get(part.output, 0.0), part.distance)
        return float(np.mean(list(each.values()))) if each else 0.0

    @property
    def worst(self) -> float:
        """That of the output that is furthest off; likewise."""
        return max((part.distance for part in self.parts), default=0.0)

    @property
    def empty(self) -> list[int]:
        """Outputs that never held anything, in either model."""
        return [index for index, sums in self._sums.items() if not sums.ours and not sums.theirs]


def _of_labels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differing elements count 1 of a spread of 1 each."""
    return (a != b).sum(axis=0, dtype=np.float64), np.full(a.shape[1:], float(len(a))), np.zeros(a.shape[1:])


def _distance(sums: np.ndarray, axis: int | None, samples: int) -> tuple[float, float]:
    """The distance of a part, and its scale, from its sums (3, positions...)."""
    gap, square, total = sums
    # The mean is that of each channel: of the dimension that has parts, or where vectors and maps have theirs.
    channel = axis if axis is not None else 0 if gap.ndim in (1, 3) else None
    others = tuple(other for other in range(gap.ndim) if other != channel)
    count = samples * (gap.size // gap.shape[channel] if channel is not None else gap.size)
    spread = float(square.sum() - (total.sum(axis=others) ** 2).sum() / max(1, count))
    most = float(square.sum())
    # Of numbers that are all the same, or of a single one, the size is the measure.
    measure = spread if spread > _SAME * most else most
    return float(gap.sum()) / max(measure, 1e-12), float(np.sqrt(most / max(1, samples * gap.size)))


def parts_of(scales: np.ndarray, known: Parts) -> list[tuple[int | None, np.ndarray]]:
    """Parts of an output: a dimension of its positions, and the indices along it of each part.

    Args:
        scales: (d1, d2, ...) the root of the mean square at each position.
        known: sizes of the parts along some dimensions, as the file states them.

    Returns:
        One entry of no dimension if there are no parts.
    """
    found: list[tuple[int | None, np.ndarray]] = []
    for axis, sizes in known.items():
        if 0 <= axis < scales.ndim and sum(sizes) == scales.shape[axis] and len(sizes) > 1:
            ends = np.cumsum([0, *sizes])
            found += [(axis, np.arange(start, stop)) for start, stop in pairwise(ends) if stop > start]
    if not found:
        found = max((_unlike(scales, axis) for axis in range(scales.ndim)), key=len, default=[])
    return found or [(None, np.arange(0))]


def _unlike(scales: np.ndarray, axis: int) -> list[tuple[int | None, np.ndarray]]:
    """Indices along a dimension in groups of like scale; none if all are alike."""
    others = tuple(other for other in range(scales.ndim) if other != axis)
    along = np.sqrt((scales**2).mean(axis=others))
    if not along.size or not along.max():
        return []
    along = np.maximum(along, _DEAD * along.max())
    order = np.argsort(along)
    jumps = np.flatnonzero(along[order][1:] >= UNLIKE * along[order][:-1]) + 1
    return [(axis, np.sort(group)) for group in np.split(order, jumps)] if jumps.size else []


def _ranges(indices: np.ndarray) -> str:
    """Indices in words: 0 to 3, 7."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    said = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:3]]
    return ", ".join(said) + (", ..." if len(runs) > 3 else "")

"""How far two arrays are apart, accumulated over batches: every position of an output in its own scale.

    difference at a position = max |a - b| over all samples
    its scale                = max |a| in the slice through it where that is smallest (see `positions`)
    equal                    = difference <= max(atol, rtol * scale + what rounding moves), everywhere,
                               and difference <= max(atol, rtol * the largest scale)

Element-wise relative errors say nothing near zero, and the scale of the whole output says nothing of scores beside
coordinates. What is near zero in its own slice may be no more than rounding: `suspects` names the samples on which
that is in question, and `allow` takes in what rounding moves there (see `rounding`).

An output of integers or truth values (a class index, say) has for its error the share of elements that differ. NaN and
infinity never equal anything, themselves included, and an output without elements equals nothing either.
"""

from dataclasses import dataclass, replace

import numpy as np

from graphprune.verification.positions import Fold, binding_dimension, local_scale, rows_at_a_time

__all__ = ["Judge", "OutputComparison", "tolerated", "without_common_faults"]

#: The absolute tolerance, as a share of the relative one: of float32 four last places of 1. A result as small as that
#: may have passed through numbers of that size; onnxruntime's Sigmoid, for one, adds a half at its end.
_ATOL_SHARE = 5e-3
_UNLIKE = 0.1  # a scale that is so much smaller than the output's is said to be another one


@dataclass(frozen=True)
class OutputComparison:
    """How far one output of the candidate is from the reference's.

    Attributes:
        name: The output's name.
        max_difference: |a - b| where the error is largest.
        scale: The scale there.
        error: max |a - b| / scale, over all positions; infinite when the shapes differ or something is not finite.
        equal: Whether the error is within the tolerance.
        problem: Why there is no meaningful number, or "".
        worst_sample: Index of the sample with the largest difference.
        place: Where in the output that is, if its scale is another one than that of the whole output; else "".
        compared: Whether there was anything to compare.
        proven: Of an output without elements: whether what it is made of has been compared instead, and is equal.
    """

    name: str
    max_difference: float
    scale: float
    error: float
    equal: bool
    problem: str
    worst_sample: int
    place: str = ""
    compared: bool = True
    proven: bool = False

    @property
    def passes(self) -> bool:
        """Is there nothing against it?"""
        return self.equal or self.proven

    @property
    def badness(self) -> tuple[bool, bool, float]:
        """What the worst of several is the largest of: what fails, what has been compared, what errs most."""
        return (not self.passes, self.compared, self.error if self.compared else 0.0)

    def said(self, rtol: float) -> str:
        """What is wrong, to go after the output's name."""
        where = f" at {self.place}" if self.place else ""
        return self.problem or f"differs by {self.error:.2g} of its scale{where}, {rtol:.2g} is tolerated"


class Judge:
    """Accumulates the comparison of one output over the batches.

    Args:
        name: the output's.
        rtol: relative tolerance.
        atol: difference that passes whatever the scale; by default a two-hundredth of `rtol`.
        exact: integers must all be the same. Without, they may differ in a share `rtol` of them, because rounding may
            turn an index over.
    """

    def __init__(self, name: str, rtol: float, atol: float | None = None, *, exact: bool = False) -> None:
        self.name, self.rtol, self.exact = name, rtol, exact
        self.atol = tolerated(rtol, atol)
        self.problem, self.sample = "", 0
        self.elements = self.faults = self.samples = 0
        self._labels = self._differing = 0
        self._fold, self._first_dimension = Fold(), 0
        zero = np.zeros((), np.float32)
        self._scale = self._gap = self._noise = zero
        self._sample = np.zeros((), np.int64)

    def see(self, a: np.ndarray, b: np.ndarray, at: int, *, rows: int | None = None, same_faults: bool = False) -> None:
        """Take in one batch, whose first sample has the index `at`.

        Args:
            a: the reference's output.
            b: the candidate's.
            at: index of the batch's first sample.
            rows: number of samples of the batch; by default the first size of `a`. Where that is another one, the
                first dimension holds something else.
            same_faults: leave out elements that are NaN or the same infinity on both sides; `faults` counts them.
        """
        self.samples += rows or (len(a) if a.ndim else 1)
        if self.problem:
            return
        if a.shape != b.shape:
            self._fail(f"has shape {_shape(b)} where {_shape(a)} is expected", at)
        elif np.issubdtype(a.dtype, np.floating):
            by_sample = a.ndim > 0 and rows in (None, len(a))
            self._first_dimension = int(by_sample)
            self._see_numbers(*((a, b) if by_sample else (a[None], b[None])), at, same_faults)
        else:
            self._see_labels(a, b, at)

    def _see_labels(self, a: np.ndarray, b: np.ndarray, at: int) -> None:
        gap = a != b
        self.elements += gap.size
        self._labels += gap.size
        self._differing += int(gap.sum())
        if gap.any():
            self.sample = at + int(np.argwhere(gap)[0][0] if gap.ndim else 0)

    def _see_numbers(self, a: np.ndarray, b: np.ndarray, at: int, same_faults: bool) -> None:
        step = rows_at_a_time(a)
        for start in range(0, len(a) if a.size else 0, step):
            x, y = (v[start : start + step].astype(_wide(v), copy=False) for v in (a, b))
            with np.errstate(invalid="ignore", over="ignore"):
                gap, size = np.abs(x - y), np.abs(x).max(axis=0)
            largest = gap.max(axis=0)
            if not (np.isfinite(largest).all() and np.isfinite(size).all()):
                x, y, gap = self._without_faults(x, y, at + start, same_faults)
                if self.problem:
                    return
                largest, size = gap.max(axis=0), np.abs(x).max(axis=0)
            self.elements += gap.size
            self._take(size, largest, gap.argmax(axis=0) + (at + start))

    def _without_faults(
        self, x: np.ndarray, y: np.ndarray, at: int, same_faults: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays and their difference without what is not finite; fails where that cannot be left out."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        if same_faults:
            before = int(np.isfinite(x).sum())
            x, y = without_common_faults(x, y)
            common = int(np.isfinite(x).sum()) - before
            self.faults += common
            self.elements -= common
        broken = ~(np.isfinite(x) & np.isfinite(y))
        if broken.any():
            whose = "the candidate" if np.isfinite(x).all() else "the reference"
            self._fail(f"holds NaN or infinity in {whose}", at + int(np.argwhere(broken)[0][0]))
        with np.errstate(invalid="ignore"):
            return x, y, np.abs(x - y)

    def _take(self, size: np.ndarray, gap: np.ndarray, sample: np.ndarray) -> None:
        is_first = self._fold.shape is None
        shape = self._fold.common(gap.shape)
        size, (gap, sample) = Fold.to(size, shape, np.max), Fold.to_largest(gap, sample, shape)
        if is_first:
            self._scale, self._gap, self._sample = size, gap, np.asarray(sample)
            return
        self._scale = np.maximum(Fold.to(self._scale, shape, np.max), size)
        before, its_sample = Fold.to_largest(self._gap, self._sample, shape)
        self._sample = np.where(gap > before, sample, its_sample)
        self._gap = np.maximum(before, gap)

    def allow(self, moved: np.ndarray, *, rows: int | None = None) -> None:
        """Tolerate what rounding moves in a batch of `rows`: an array like its output."""
        if self._fold.shape is None or not moved.size:
            return
        by_sample = moved.ndim > 0 and rows in (None, len(moved))
        shape, most = self._fold.shape, float(np.finfo(np.float32).max)
        moved = moved.astype(_wide(moved), copy=False)
        largest = np.nan_to_num(np.abs(moved).max(axis=0) if by_sample else np.abs(moved), nan=most, posinf=most)
        fits = largest.ndim == len(shape) and all(
            b == 1 or a in (1, b) for a, b in zip(largest.shape, shape, strict=True)
        )
        self._noise = np.maximum(self._noise, Fold.to(largest, shape, np.max) if fits else largest.max())

    def suspects(self) -> list[int]:
        """Samples on which a difference is beyond the tolerance of its place, though not of the output: worst first."""
        if self.problem or self._fold.shape is None or not self.rtol:
            return []
        error = self._errors()
        beyond = error > self.rtol
        if not beyond.any() or (self._gap > max(self.atol, self.rtol * self._scale.max())).any():
            return []
        order = np.argsort(-error[beyond])
        return list(dict.fromkeys(int(sample) for sample in self._sample[beyond][order]))

    def _errors(self) -> np.ndarray:
        """Differences in the scale of their places."""
        if not self.rtol:
            return np.where(self._gap <= self.atol, 0.0, np.inf)
        scale = local_scale(self._scale)
        if self._noise.any():
            largest = self._scale.max()
            noise = np.minimum(local_scale(self._noise), self.rtol * largest)
            scale = np.minimum(scale + noise / self.rtol, largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self._gap > 0, self._gap / np.maximum(scale, self.atol / self.rtol), 0.0)

    def result(self) -> OutputComparison:
        """Return the verdict over everything seen."""
        failed = OutputComparison(self.name, np.inf, 0.0, np.inf, False, self.problem, worst_sample=self.sample)
        if self.problem:
            return failed
        if not self.elements:
            what = "is NaN or infinite throughout" if self.faults else "holds nothing"
            said = f"{what} on the {self.samples} sample{'s' if self.samples != 1 else ''}, so nothing was compared"
            return replace(failed, problem=said, compared=False)
        return self._result_of_labels() if self._labels else self._result_of_numbers()

    def _result_of_labels(self) -> OutputComparison:
        share = self._differing / self._labels
        equal = share <= (0.0 if self.exact else self.rtol)
        problem = "" if equal else f"differs in {share:.2%} of its elements, which are no floats"
        return OutputComparison(
            self.name, float(self._differing), float(self._labels), share, equal, problem, self.sample
        )

    def _result_of_numbers(self) -> OutputComparison:
        errors = self._errors()
        scales = local_scale(self._scale)
        error = float(errors.max())
        # Where nothing differs, the scale is that of the output.
        at = tuple(map(int, np.unravel_index((errors if error else self._scale).argmax(), errors.shape)))
        scale = float(scales[at])
        place = ""
        if error and scale < _UNLIKE * float(self._scale.max()):
            along = binding_dimension(self._scale, at)
            place = f"index {at[along]} of dimension {along + self._first_dimension}"
        equal = error <= self.rtol
        return OutputComparison(self.name, float(self._gap[at]), scale, error, equal, "", int(self._sample[at]), place)

    def _fail(self, problem: str, sample: int) -> None:
        self.problem, self.sample = problem, sample


def tolerated(rtol: float, atol: float | None) -> float:
    """The absolute tolerance beside a relative one."""
    return _ATOL_SHARE * rtol if atol is None else atol


def _wide(array: np.ndarray) -> type[np.floating]:
    return np.float64 if array.dtype == np.float64 else np.float32


def without_common_faults(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with 0 where both hold NaN, or the same infinity."""
    with np.errstate(invalid="ignore"):
        common = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    if not common.any():
        return a, b
    return np.where(common, 0, a), np.where(common, 0, b)


def _shape(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape) or "()"

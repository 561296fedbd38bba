"""How far two arrays are apart, accumulated over batches.

    error of an output = max |a - b| / max |a|          relative to the output's own scale, over all samples
    equal              = max |a - b| <= atol + rtol * max |a|

Element-wise relative errors say nothing near zero, so the scale of the whole output is the measure. An output
of integers or truth values (a class index, say) has for its error the share of elements that differ. NaN and
infinity never equal anything, themselves included.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Agreement", "Judge", "OutputComparison", "are_classes", "without_common_faults"]


@dataclass(frozen=True)
class OutputComparison:
    """How far one output of the candidate is from the reference's.

    Attributes:
        name: The output's name.
        max_difference: max |a - b|.
        scale: max |a|.
        error: max |a - b| / max |a|; infinite when the shapes differ or something is not finite.
        equal: Whether the error is within the tolerance.
        problem: Why there is no meaningful number, or "".
        worst_sample: Index of the sample with the largest difference.
    """

    name: str
    max_difference: float
    scale: float
    error: float
    equal: bool
    problem: str
    worst_sample: int


@dataclass
class Judge:
    """Accumulates the comparison of one output over the batches."""

    name: str
    rtol: float
    atol: float
    difference: float = 0.0
    scale: float = 0.0
    counted: int = 0
    exact: bool = False
    problem: str = ""
    worst_sample: int = 0

    def see(self, a: np.ndarray, b: np.ndarray, at: int, *, same_faults: bool = False) -> None:
        """Take in one batch, whose first sample has the index `at`.

        With `same_faults`, elements that are NaN or the same infinity on both sides are left out.
        """
        if self.problem:
            return
        if same_faults and a.shape == b.shape and np.issubdtype(a.dtype, np.floating):
            a, b = without_common_faults(a, b)
        if a.shape != b.shape:
            self._fail(f"has shape {_shape(b)} where {_shape(a)} is expected", at)
        elif not np.issubdtype(a.dtype, np.floating):
            self.exact = True
            gap = (a != b).astype(np.float64)
            self.counted += gap.size
            self.difference += float(gap.sum())
            if gap.any():
                self.worst_sample = at + int(np.argwhere(gap)[0][0] if gap.ndim else 0)
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            whose = "the candidate" if np.isfinite(a).all() else "the reference"
            broken = ~(np.isfinite(a) & np.isfinite(b))
            self._fail(f"holds NaN or infinity in {whose}", at + int(np.argwhere(broken)[0][0] if a.ndim else 0))
        elif a.size:
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
            self.scale = max(self.scale, float(np.abs(a).max()))
            if gap.max() > self.difference:
                self.difference = float(gap.max())
                self.worst_sample = at + int(np.unravel_index(gap.argmax(), gap.shape)[0] if gap.ndim else 0)

    def result(self) -> OutputComparison:
        """Return the verdict over everything seen."""
        if self.problem:
            return OutputComparison(
                self.name, np.inf, self.scale, np.inf, False, self.problem, worst_sample=self.worst_sample
            )
        scale = float(self.counted or 1) if self.exact else self.scale
        error = self.difference / scale if scale else (np.inf if self.difference else 0.0)
        equal = error <= self.rtol if self.exact else self.difference <= self.atol + self.rtol * scale
        problem = "" if equal or not self.exact else f"differs in {error:.2%} of its elements, which are no floats"
        return OutputComparison(self.name, self.difference, scale, error, equal, problem, self.worst_sample)

    def _fail(self, problem: str, sample: int) -> None:
        self.problem, self.worst_sample = problem, sample


def without_common_faults(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with 0 where both hold NaN, or the same infinity."""
    with np.errstate(invalid="ignore"):
        common = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    if not common.any():
        return a, b
    return np.where(common, 0, a), np.where(common, 0, b)


def are_classes(shapes: Sequence[Sequence[int]], setting: str) -> bool:
    """Are the floating-point outputs scores of classes?

    Args:
        shapes: theirs.
        setting: what is known of them: "kl" says that they are, "mse" that they are not; "auto" takes a single one of
            shape (batch, classes) for scores, and not a map, which may be an image as well.
    """
    if setting == "auto":
        return len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1
    return setting == "kl"


@dataclass
class Agreement:
    """Counts the samples (or pixels) on which outputs have their largest element at the same place in both models."""

    same: Counter[int] = field(default_factory=Counter)  # by output
    seen: Counter[int] = field(default_factory=Counter)
    samples: int = 0

    def see(self, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], rows: int) -> None:
        """Take in the outputs of one batch, of which the first `rows` samples count."""
        self.samples += rows
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            is_scores = np.issubdtype(a.dtype, np.floating) and a.ndim >= 2 and a.shape[1] > 1
            if is_scores and a.shape == b.shape:
                finite = np.isfinite(a[:rows]).all(axis=1) & np.isfinite(b[:rows]).all(axis=1)
                same = (a[:rows].argmax(axis=1) == b[:rows].argmax(axis=1)) & finite
                self.same[index] += int(same.sum())
                self.seen[index] += same.size

    @property
    def share(self) -> float | None:
        """The agreement, of several outputs the lowest; None when no output has scores along dimension 1."""
        return min((self.same[index] / seen for index, seen in self.seen.items() if seen), default=None)

    @property
    def unit(self) -> str:
        """What the agreement is a share of: "images", or "pixels" where an output has scores for each of them."""
        return "pixels" if any(seen > self.samples for seen in self.seen.values()) else "images"


def _shape(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape) or "()"

"""Many small arrays as one: what is asked of each of them is asked of all at once, without a loop."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels.labels import Labels

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Segments:
    """Arrays of numbers laid end to end: what is asked of each of them is asked of all at once."""

    def __init__(self, arrays: Sequence[Labels]) -> None:
        """`arrays`: of any shape, flattened in order; none of them empty."""
        self.lengths = np.array([array.size for array in arrays], dtype=np.int64)
        self.values: Labels = np.concatenate([np.empty(0, dtype=np.int64), *(array.ravel() for array in arrays)])

    @cached_property
    def starts(self) -> Labels:
        """Where each array begins."""
        return np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def apart(self, values: NDArray) -> list[NDArray]:
        """One number for each element, cut up again: flat arrays, views of `values`."""
        bounds = zip(self.starts.tolist(), (self.starts + self.lengths).tolist(), strict=True)
        return [values[start:end] for start, end in bounds]

    def least(self, values: NDArray) -> NDArray:
        """The minimum over each array."""
        return np.minimum.reduceat(values, self.starts) if len(self) else values[:0]

    def most(self, values: NDArray) -> NDArray:
        """The maximum over each array."""
        return np.maximum.reduceat(values, self.starts) if len(self) else values[:0]

    def counts(self, values: Labels, number: int) -> "csr_matrix":
        """How often each of 0, 1, ..., number - 1 occurs in each array; negative values do not count."""
        from scipy.sparse import csr_matrix  # a fifth of a second, which a mere look at the rules need not take

        held = np.flatnonzero(values >= 0)
        ends = np.searchsorted(held, np.append(self.starts, len(values)))
        matrix = csr_matrix((np.ones(len(held), dtype=np.int64), values[held], ends), shape=(len(self), number))
        matrix.sum_duplicates()
        return matrix

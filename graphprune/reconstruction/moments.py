"""Second moments of rows, and ridge regression from them.

    H = mean of x xᵀ,   G = mean of x yᵀ        centred, where a constant may be added
    W = argmin  mean |y - xᵀW|² + λ s |W - W₀|²  =  (H + λ s I)⁻¹ (G + λ s W₀),       s = mean diagonal of H

Products are taken in float32 of rows that were shifted by their mean first, and added up in float64. Problems of a
grouped layer are solved side by side: leading dimension `groups` everywhere.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Moments", "Ridge", "Second", "gram"]

_BLOCK = 4096  # rows whose products are added up in float32


def gram(left: Tensor, right: Tensor) -> Tensor:
    """(groups, n, m) sum over rows of left rightᵀ, in float64. Shapes: (groups, rows, n), (groups, rows, m)."""
    total = torch.zeros(len(left), left.shape[2], right.shape[2], dtype=torch.float64)
    for start in range(0, left.shape[1], _BLOCK):
        a, b = left[:, start : start + _BLOCK], right[:, start : start + _BLOCK]
        if left is right and len(a) == 1:
            total += torch.from_numpy(_square(a[0].numpy()))
        else:
            total += (a[0].T @ b[0])[None] if len(a) == 1 else torch.bmm(a.transpose(1, 2), b)
    return total


def _square(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Product with itself: numpy computes half of it (syrk) where it sees that, torch all."""
    return rows.T @ rows


class Second:
    """Second moments of rows that come batch by batch."""

    def __init__(self, rows: Tensor) -> None:
        """Begin with (groups, rows, n)."""
        self._shift = rows.mean(1, keepdim=True)
        self._rows = 0
        self._sums = torch.zeros(len(rows), rows.shape[2], dtype=torch.float64)
        self._products = torch.zeros(len(rows), rows.shape[2], rows.shape[2], dtype=torch.float64)
        self.add(rows)

    def add(self, rows: Tensor) -> None:
        """Take in more."""
        shifted = rows - self._shift
        self._rows += rows.shape[1]
        self._sums += shifted.sum(1)
        self._products += gram(shifted, shifted)

    def centred(self) -> Tensor:
        """(groups, n, n) covariance."""
        mean = self._sums / self._rows
        return self._products / self._rows - mean[:, :, None] * mean[:, None, :]


class Moments:
    """Moments of least-squares problems: x (groups, rows, n) explains y (groups, rows, m).

    There are two problems, one of the rows up to `held` and one of all of them, whose products are added up.

    Args:
        x: what explains.
        held: rows of the first problem.
        is_biased: whether a constant may be added.
    """

    def __init__(self, x: Tensor, held: int, *, is_biased: bool) -> None:
        self._held, self._is_biased = held, is_biased
        self._shift = x[:, :held].mean(1) if is_biased else x.new_zeros(len(x), x.shape[2])
        self._x = x - self._shift[:, None] if is_biased else x
        self._parts = [self._x[:, :held], self._x[:, held:]]
        self._sums = [part.sum(1).double() for part in self._parts]

    @cached_property
    def _products(self) -> list[Tensor]:
        return [gram(part, part) for part in self._parts]

    def _count(self, whole: bool) -> int:
        return max(1, self._x.shape[1] if whole else self._held)

    def _left(self, whole: bool) -> Tensor:
        """(groups, n) mean of the shifted rows."""
        total = self._sums[0] + self._sums[1] if whole else self._sums[0]
        return total / self._count(whole) if self._is_biased else torch.zeros_like(total)

    def mean(self, whole: bool) -> Tensor:
        """(groups, n) mean of the rows; zeros where no constant may be added."""
        return self._shift.double() + self._left(whole)

    def second(self, whole: bool) -> Tensor:
        """(groups, n, n) H."""
        total = self._products[0] + self._products[1] if whole else self._products[0]
        left = self._left(whole)
        return total / self._count(whole) - left[:, :, None] * left[:, None, :]

    def cross(self, y: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        """G, (groups, n, m), and the mean of y, (groups, m). Shapes: y (groups, rows of the problem, m)."""
        mean = y.mean(1) if self._is_biased else y.new_zeros(len(y), y.shape[2])
        x = self._x if whole else self._parts[0]
        product = gram(x, y - mean[:, None] if self._is_biased else y) / self._count(whole)
        return product, mean.double()


class Ridge:
    """Solves one problem for several right-hand sides.

    Args:
        second: (groups, n, n) H.
        share: λ.
    """

    def __init__(self, second: Tensor, share: float) -> None:
        scale = second.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        self._strength = (share * scale)[:, None, None]
        unit = torch.eye(second.shape[1], dtype=torch.float64)
        factor, info = torch.linalg.cholesky_ex(second + self._strength * unit)
        while bool(info.any()):  # as good as singular: rounding has made it worse than that
            self._strength = self._strength * 10
            factor, info = torch.linalg.cholesky_ex(second + self._strength * unit)
        self._factor = factor

    def solve(self, cross: Tensor, prior: Tensor) -> Tensor:
        """(groups, n, m) weights. Shapes: cross and prior likewise."""
        return torch.cholesky_solve(cross + self._strength * prior, self._factor)

    def inverse(self) -> Tensor:
        """(groups, n, n) inverse of H + λ s I."""
        return torch.cholesky_inverse(self._factor)

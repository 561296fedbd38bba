"""One layer solved in closed form, with the strength of the ridge told by images that it was not solved on.

Where the result goes straight into an activation that is flat somewhere, what disappears there is free: a target below
the limit is met by anything below it. The square of the distance to what is allowed is a convex loss, and it falls with
each least-squares fit to the nearest allowed numbers (majorize and minimize; compare Zhang et al. 2015, section 3.2,
whose targets are relaxed with a penalty instead).

What is compared on the images held out is the squared error behind the activation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.reconstruction.layers import FEW_ROWS, MOST_COLUMNS, Layer
from graphprune.reconstruction.moments import Moments, Ridge

__all__ = ["MAPPED", "Fit", "Problem", "solve"]

_USUAL = 1e-2  # share of the mean diagonal
_STRONGER = (1e-1, 1.0)  # tried where that is no better than plain removal
#: Stands for a strength where a map of channels was taken.
MAPPED = -1.0
_ROUNDS = 3  # of fits to the nearest allowed numbers, on all rows
_WIDE = 1024  # columns from which there is only one


@dataclass(frozen=True)
class Problem:
    """Rows of one layer.

    Attributes:
        layer: the layer.
        x: (groups, rows, n) what it reads.
        goal: (rows, outputs) what its result, or the sum that it goes into, is to be.
        beside: (rows, outputs) the other operand of that sum, or None.
        held: the rows from this one on are of images held out.
        weight: (groups, n, m) the weights of plain removal.
        bias: (groups, m) likewise.
        mapped: (groups, n, m) weights that read what a map of the channels that are left makes of all, or None.
    """

    layer: Layer
    x: Tensor
    goal: Tensor
    beside: Tensor | None
    held: int
    weight: Tensor
    bias: Tensor
    mapped: Tensor | None = None

    @property
    def is_flat(self) -> bool:
        """Is there an activation behind that is constant somewhere?"""
        return self.layer.low > -math.inf or self.layer.high < math.inf

    def of(self, part: slice) -> "Problem":
        """The same with some of the rows."""
        beside = None if self.beside is None else self.beside[part]
        return Problem(self.layer, self.x[:, part], self.goal[part], beside, self.held, self.weight, self.bias)

    def given(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(rows, outputs) what the layer gives, without what is beside it."""
        kind = self.x.dtype
        if len(self.x) == 1:
            return torch.addmm(bias[0].to(kind), self.x[0], weight[0].to(kind))
        return torch.baddbmm(bias[:, None].to(kind), self.x, weight.to(kind)).permute(1, 0, 2).flatten(1)

    def apart(self, values: Tensor) -> Tensor:
        """(groups, rows, outputs of a group) of (rows, outputs)."""
        groups = len(self.x)
        return values[None] if groups == 1 else values.reshape(len(values), groups, -1).permute(1, 0, 2)

    def spread(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(groups, m) mean of what weights alone give, and its variance."""
        given = self.apart(self.given(weight, weight.new_zeros(len(weight), weight.shape[2])))
        return given.mean(1).double(), given.var(1, correction=0).double()

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Squared error behind the activation, a row and output."""
        low, high = self.layer.low, self.layer.high
        total = self.given(weight, bias)
        total = total if self.beside is None else total + self.beside
        gap = total.clamp(low, high) - self.goal.clamp(low, high)
        return float(gap.square().mean(dtype=torch.float64))

    def nearest(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(rows, outputs) the allowed numbers that are nearest to what the layer gives."""
        low, high = self.layer.low, self.layer.high
        if not self.is_flat:
            return self.goal if self.beside is None else self.goal - self.beside
        given = self.given(weight, bias)
        total = given if self.beside is None else given + self.beside
        wanted = self.goal
        if low > -math.inf:
            wanted = torch.where(wanted <= low, total.clamp(max=low), wanted)
        if high < math.inf:
            wanted = torch.where(wanted >= high, total.clamp(min=high), wanted)
        return wanted if self.beside is None else wanted - self.beside


@dataclass(frozen=True)
class Fit:
    """A solved layer.

    Attributes:
        weight: (groups, n, m).
        bias: (groups, m).
        mean: (groups, m) mean of what the weight alone gives.
        variance: (groups, m) its variance.
        strength: λ; 0 where plain removal was not beaten, and stays.
        plain: error of plain removal on the rows held out.
        error: that of the fit, before it was solved again on all rows.
        rows: how many these are.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    strength: float
    plain: float
    error: float
    rows: int


def solve(problem: Problem) -> Fit:
    """The layer fitted to its goal, where that is better than plain removal on the rows held out.

    The usual strength is taken where it is better, else a stronger one; the best of all where rows are few. A map of
    channels is taken where it is better still, or where there are too many columns for anything else.
    """
    train, held = problem.of(slice(0, problem.held)), problem.of(slice(problem.held, None))
    plain = held.error(problem.weight, problem.bias)
    is_wide = problem.mapped is not None and problem.x.shape[2] > MOST_COLUMNS
    is_few = problem.held < FEW_ROWS * problem.x.shape[2]
    error, strength, weight, bias = plain, 0.0, problem.weight, problem.bias
    if problem.mapped is not None:
        shift = _shift(train, problem.mapped)
        now = held.error(problem.mapped, shift)
        if now < error:
            error, strength, weight, bias = now, MAPPED, problem.mapped, shift
    moments = None if is_wide else Moments(problem.x, problem.held, is_biased=problem.layer.is_biased)
    for tried in (_USUAL, *_STRONGER):
        if moments is None:
            break
        found = _solved(train, moments, tried, (problem.weight, problem.bias), whole=False)
        now = held.error(*found)
        if now < error:
            error, strength, (weight, bias) = now, tried, found
        if strength and not is_few:
            break
    if moments is not None and strength not in (0.0, MAPPED):
        for _ in range(_ROUNDS if problem.is_flat and problem.x.shape[2] <= _WIDE else 1):
            weight, bias = _solved(problem, moments, strength, (weight, bias), whole=True)
    mean, variance = problem.spread(weight)
    return Fit(weight, bias, mean, variance, strength, plain, error, problem.x.shape[1])


def _shift(problem: Problem, weight: Tensor) -> Tensor:
    """(groups, m) biases that make the mean of a layer's result that of its goal."""
    if not problem.layer.is_biased:
        return problem.bias
    goal = problem.goal if problem.beside is None else problem.goal - problem.beside
    gap = goal.mean(0) - problem.given(weight, torch.zeros_like(problem.bias)).mean(0)
    return problem.apart(gap[None])[:, 0].double()


def _solved(
    problem: Problem, moments: Moments, strength: float, start: tuple[Tensor, Tensor], *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Weights and biases of the fit to the allowed numbers that are nearest to what those of `start` give."""
    cross, mean = moments.cross(problem.apart(problem.nearest(*start)), whole)
    weight = Ridge(moments.second(whole), strength).solve(cross, problem.weight)
    if not problem.layer.is_biased:
        return weight, problem.bias
    return weight, mean - (weight * moments.mean(whole)[:, :, None]).sum(1)

"""Criteria: how much a channel group is worth, as one score a group.

One table, name -> function, for one-shot plans and for the sensitivity of the training engine alike. Every criterion
works on all groups at once and is never negative.

Groups are ordered by score per cost, so a score must grow with the group as its worth does: it is a sum over the
members, or the square of one, never a mean. With a mean, the groups that cost most, those of a residual trunk, would go
first. Measured on ResNet56, one-shot to 60 % of the MACs, BatchNorm re-estimated: agreement 0.88 with the sum of
squares, 0.55 with the root mean square (docs/algorithm.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.passes.errors import UsageError
from graphprune.sparsity import GroupIndex


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        index: the groups of a model; gradients of a loss stand in `.grad` of its parameters if the criterion
            needs them (`needs_gradient`).
        generator: source of randomness.
    """

    index: GroupIndex
    generator: torch.Generator


Criterion = Callable[[Evidence], Tensor]


def random(evidence: Evidence) -> Tensor:
    """Uniform in [0, 1): the baseline that every other criterion must beat.

    Source: Mittal et al. 2018, "Recovering from random pruning".
    """
    return torch.rand(evidence.index.n_groups, generator=evidence.generator)


def l1(evidence: Evidence) -> Tensor:
    """(sum of |weight|)^2 / |g| over the |g| elements of all members of the group.

    In the order of the mean absolute weight inside a set; between sets an energy, like `l2`.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1, over the coupled group.
    """
    index = evidence.index
    with torch.no_grad():
        return index.sums([p.abs() for p in index.parameters]).square_() / index.sizes.clamp_min(1)


def l2(evidence: Evidence) -> Tensor:
    """Sum of squared weights over all members of the group.

    In the order of the L2 norm inside a set; between sets an energy, which a group's price can be weighed against.

    Source: Fang et al. 2023, "DepGraph: towards any structural pruning", section 3.3 (group norm).
    """
    return evidence.index.norms().square_()


def taylor(evidence: Evidence) -> Tensor:
    """(sum of weight * gradient over all members of the group)^2: squared first-order change of the loss without it.

    Squared, because groups are ordered by score per cost. A student that follows its teacher is near a minimum of the
    loss, where first-order changes average to zero and their squares estimate the second-order change, which is what
    removing a group really costs. The absolute value instead ranks large groups, such as those of a residual trunk,
    far too low (measured: docs/algorithm.md).

    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", eq. 8, with the sum over the
    whole coupled group; Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", eq. 5.
    """
    return evidence.index.slopes().square_()


CRITERIA: dict[str, Criterion] = {"random": random, "l1": l1, "l2": l2, "taylor": taylor}

_NEED_GRADIENT = frozenset({"taylor"})


def criterion(name: str) -> Criterion:
    """The criterion of that name. Raises: UsageError: there is none."""
    if name not in CRITERIA:
        raise UsageError(f"--criterion must be one of {', '.join(CRITERIA)}, not {name!r}")
    return CRITERIA[name]


def needs_gradient(name: str) -> bool:
    """Whether the criterion reads gradients, and so has a new opinion after every training step."""
    return name in _NEED_GRADIENT

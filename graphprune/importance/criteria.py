"""Criteria: how much a channel group is worth, as one score a group.

One table, name -> criterion, for one-shot plans and for the sensitivity of the training engine alike. Every criterion
works on all groups at once and is never negative.

Groups are ordered by score per cost, so a score must grow with the group as its worth does: it is a sum over the
members, or the square of one, never a mean. With a mean, the groups that cost most, those of a residual trunk, would go
first. Measured on ResNet56, one-shot to 60 % of the MACs, BatchNorm re-estimated: agreement 0.88 with the sum of
squares, 0.55 with the root mean square (docs/algorithm.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from graphprune.importance.group_index import GroupIndex
from graphprune.passes.errors import UsageError

__all__ = ["CRITERIA", "Criterion", "Evidence", "criterion"]

Needs = Literal["weights", "gradients", "activations", "costs"]

_BINS = 32


class Activations(Protocol):
    """Per-channel statistics of what a network computes on images (`graphprune.importance.activations`)."""

    def sums(
        self, per_image: Callable[[Tensor], Tensor], over_images: Callable[[Tensor], Tensor], most: int | None = None
    ) -> Tensor:
        """Per group, the sum of a statistic over the activations that carry it.

        Args:
            per_image: feature maps (images, channels, positions...) to one number an image and channel.
            over_images: (images, channels) of those to one number a channel.
            most: look at so many images at most.
        """


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        index: the groups of a model; gradients of a loss stand in `.grad` of its parameters if the criterion
            needs them.
        generator: source of randomness.
        sets: ids of the groups of each set, without those that are dead.
        scales: names of the parameters that scale normalized channels (BatchNorm's gamma).
        activations: statistics on images, for criteria that need them.
        costs: gives what each group costs where its readers make up for it (`graphprune.reconstruction`), likewise.
    """

    index: GroupIndex
    generator: torch.Generator
    sets: Sequence[np.ndarray] = ()
    scales: frozenset[str] = field(default_factory=frozenset)
    activations: Activations | None = None
    costs: Callable[[], np.ndarray] | None = None

    @property
    def living(self) -> Tensor:
        """(n_groups,) mask of the groups in `sets`; of all, where none are given."""
        mask = torch.full((self.index.n_groups,), not self.sets)
        for groups in self.sets:
            mask[torch.from_numpy(groups)] = True
        return mask


@dataclass(frozen=True)
class Criterion:
    """One entry of the table: a score, and what it takes to compute it."""

    score: Callable[[Evidence], Tensor]
    needs: Needs = "weights"

    def __call__(self, evidence: Evidence) -> Tensor:
        """(n_groups,) scores, at least 0."""
        return self.score(evidence)

    @property
    def source(self) -> str:
        """The publication it comes from."""
        return " ".join((self.score.__doc__ or "").partition("Source:")[2].split())


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


def bn_scale(evidence: Evidence) -> Tensor:
    """Sum of gamma^2 over the normalizations that the group runs through; groups without one get the mean of the rest.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", section 3.
    """
    index = evidence.index
    with torch.no_grad():
        squares = [
            p * p if name in evidence.scales else p.new_zeros(()).expand_as(p)
            for name, p in zip(index.names, index.parameters, strict=True)
        ]
        present = [
            torch.full_like(p, float(name in evidence.scales))
            for name, p in zip(index.names, index.parameters, strict=True)
        ]
        scores, has_scale = index.sums(squares), index.sums(present) > 0
    if not bool(has_scale.any()):
        raise UsageError("importance bn_scale needs BatchNorm layers, and no channel that may go runs through one")
    rest = scores[has_scale & evidence.living]
    return torch.where(has_scale, scores, rest.sum() / max(1, len(rest)))


def fpgm(evidence: Evidence) -> Tensor:
    """(mean distance to the other groups of the set)^2: a group near their geometric median can be replaced by them.

    Source: He et al. 2019, "Filter pruning via geometric median for deep neural networks acceleration", eq. 6.
    """
    index = evidence.index
    scores = torch.zeros(index.n_groups, dtype=index.sizes.dtype)
    with torch.no_grad():
        for groups in evidence.sets:
            squares = index.squared_distances(groups)
            others = max(1, len(groups) - 1)
            scores[torch.from_numpy(groups)] = (squares.sqrt().sum(1) / others).square().to(scores.dtype)
    return scores


def apoz(evidence: Evidence) -> Tensor:
    """Share of activations that are not zero, summed over the activations that carry the group.

    Source: Hu et al. 2016, "Network trimming: a data-driven neuron pruning approach", eq. 1 (1 - APoZ).
    """
    return _looked(evidence).sums(lambda maps: _position_mean((maps != 0).float()), _mean)


def entropy(evidence: Evidence) -> Tensor:
    """Entropy of the channel's mean activation over images, in nats, summed over the activations of the group.

    Source: Luo & Wu 2017, "An entropy-based pruning method for CNN compression", section 3.2; 32 bins.
    """
    return _looked(evidence).sums(_position_mean, _entropy)


def hrank(evidence: Evidence) -> Tensor:
    """Mean rank of the feature map over images, summed over the activations that carry the group.

    Source: Lin et al. 2020, "HRank: filter pruning using high-rank feature map", eq. 5.
    """
    return _looked(evidence).sums(_rank, _mean, most=64)


def reconstruction(evidence: Evidence) -> Tensor:
    """Squared error of the layers that read the group, once they are fitted anew without it, relative to their spread.

    In the order of an exact block elimination of the whole set: what the k groups of least score cost together is the
    sum of their scores (`graphprune.reconstruction.curves`).

    Source: Kurtic et al. 2023, "ZipLM: inference-aware structured pruning of language models", eq. 2-4, over all
    readers of the coupled group; Frantar & Alistarh 2022, "Optimal brain compression".
    """
    if evidence.costs is None:
        raise UsageError("importance reconstruction looks at what layers read: give images, for a one-shot plan")
    return torch.from_numpy(evidence.costs())


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random),
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "taylor": Criterion(taylor, needs="gradients"),
    "bn_scale": Criterion(bn_scale),
    "fpgm": Criterion(fpgm),
    "apoz": Criterion(apoz, needs="activations"),
    "entropy": Criterion(entropy, needs="activations"),
    "hrank": Criterion(hrank, needs="activations"),
    "reconstruction": Criterion(reconstruction, needs="costs"),
}


def criterion(name: str) -> Criterion:
    """The criterion of that name. Raises: UsageError: there is none."""
    if name not in CRITERIA:
        raise UsageError(f"importance must be one of {', '.join(CRITERIA)}, not {name!r}")
    return CRITERIA[name]


def scale_parameters(ops: Mapping[str, tuple]) -> frozenset[str]:
    """Names of the scales of all batch norms among the operators of a channel analysis."""
    found = set()
    for rule, _, op in ops.values():
        weight = op.inputs.get("weight") if rule.name == "batch norm" else None
        if weight is not None and weight.parameter is not None:
            found.add(weight.parameter)
    return frozenset(found)


def _looked(evidence: Evidence) -> Activations:
    if evidence.activations is None:
        raise UsageError("this importance looks at activations: give images")
    return evidence.activations


def _mean(values: Tensor) -> Tensor:
    return values.mean(0)


def _position_mean(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2) if maps.ndim > 2 else maps


def _entropy(means: Tensor) -> Tensor:
    low, high = means.min(0).values, means.max(0).values
    bins = ((means - low) / (high - low).clamp_min(1e-12) * _BINS).long().clamp(0, _BINS - 1)
    counts = means.new_zeros(_BINS, means.shape[1]).scatter_add_(0, bins, torch.ones_like(means))
    shares = counts / len(means)
    return -(shares * shares.clamp_min(1e-12).log()).sum(0)


def _rank(maps: Tensor) -> Tensor:
    """Maps of one row or position have rank 1, or 0 where nothing is active; volumes are looked at slice by slice."""
    height = maps.shape[-2] if maps.ndim > 3 else 1
    width = maps.shape[-1] if maps.ndim > 2 else 1
    return torch.linalg.matrix_rank(maps.reshape(*maps.shape[:2], -1, height, width)).float().mean(2)

"""What a search is given and what it gets to know."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.passes.errors import UsageError

__all__ = ["DISTANCE_WEIGHT", "Search", "SearchOptions", "Trial"]

DISTANCE_WEIGHT = 0.25
"""What a distance of 1, that of an answer that knows nothing, takes from the reward."""


_MODULES = {"random": "random_search"}


@dataclass(frozen=True)
class Trial:
    """What one allocation is worth without training.

    Attributes:
        agreement: share of images on which the model cut at once and the dense one predict the same class; None for
            networks that are no classifiers.
        distance: squared distance of the outputs, relative to the spread of the dense model's.
    """

    agreement: float | None
    distance: float

    @property
    def reward(self) -> float:
        """Agreement, less a part of the distance, which still tells allocations apart that agree alike."""
        if self.agreement is None:
            return -self.distance
        return self.agreement - DISTANCE_WEIGHT * min(self.distance, 1.0)


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search.

    Attributes:
        evaluations: how many allocations are tried out; one that comes up again counts again, at no cost.
        images: how many of the images each is judged on.
        start: policy without a search whose allocation is looked at after that of equal shares; "" for none. Nothing
            that is worse than these two will be the result.
        journal: file for what was tried. A search that was stopped goes on from it, and a curve of the rewards is drawn
            beside it.
        progress: told after each evaluation: how many are done, of how many, and the best so far.
    """

    evaluations: int = 300
    images: int = 512
    start: str = "auto"
    journal: Path | None = None
    progress: Callable[[int, int, Trial], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UsageError(f"a search needs at least one evaluation, not {self.evaluations}")
        if self.images < 2:
            raise UsageError(f"a search needs at least two images to judge by, not {self.images}")


@dataclass(frozen=True)
class Search:
    """What a policy that searches is given beside the problem.

    Attributes:
        evaluate: what an allocation is worth, by the mask of kept groups, (n_groups,).
        fingerprint: what that depends on besides; a journal of another fingerprint is of no use.
        options: how long to search.
        seed: of everything random.
    """

    evaluate: Callable[[np.ndarray], Trial]
    fingerprint: str
    options: SearchOptions
    seed: int = 0

    def propose(self, policy: str, problem: Problem) -> np.ndarray:
        """(n_groups,) mask of the groups to remove that the policy of that name finds.

        A policy is the function of its name in the module of its name, imported when it is asked: one of them is made
        of packages that take seconds to load.

        Raises:
            BudgetError: a budget cannot be reached.
        """
        name = _MODULES.get(policy, policy).replace("-", "_")
        found: Callable[[Problem], np.ndarray] = getattr(import_module(f"graphprune.search.{name}"), name)
        return found(problem)

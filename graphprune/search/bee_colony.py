"""Policy "bee-colony": an artificial bee colony over the widths of all sets.

A food source is an allocation. Employed bees try a neighbor of each source,

    v_j = x_j + r_j (x_j - y_j),   r_j uniform in [-1, 1],  y another source,  for a few sets j that have a choice

onlookers do the same at sources drawn by their rewards, and a source that was not improved for a while is given up for
a random one. A neighbor replaces its source where it is better.

Source: Lin et al. 2020, "Channel pruning via automatic structure search" (ABCPruner), algorithm 1; Karaboga 2005. What
differs: neighbors are brought to the budgets, so that all sources cost the same, and a reward without training takes
the place of the accuracy after some epochs.
"""

from dataclasses import dataclass

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.search.trials import Trials

__all__ = ["bee_colony"]

_SOURCES = 10
_PATIENCE = 10  # trials without improvement after which a source is given up
_CHANGED = 0.15  # share of the sets with a choice that a neighbor differs in


@dataclass
class _Source:
    shares: np.ndarray
    reward: float
    failures: int = 0


def bee_colony(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        UsageError: nothing tries allocations out.
        BudgetError: a budget cannot be reached.
    """
    colony = _Colony(Trials(problem, "bee-colony"))
    while colony.trials.left > 0:
        colony.employed()
        colony.onlookers()
        colony.scouts()
    return colony.trials.result()


class _Colony:
    """Food sources and what the bees do with them; each stops when no evaluation is left."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self._space = trials.space
        self._rng = np.random.default_rng(trials.seed)
        self._sources = [
            _Source(self._space.shares(widths), reward)
            for widths, reward in zip(trials.starts, trials.rewards, strict=False)
        ]
        while len(self._sources) < _SOURCES and trials.left > 0:
            self._sources.append(self._new())

    def _look(self, shares: np.ndarray) -> _Source:
        widths = self._space.project(shares)
        return _Source(self._space.shares(widths), self.trials.look(widths))

    def _new(self) -> _Source:
        return self._look(self._rng.uniform(max(self._space.floor, 0.01), 1.0, len(self._space)))

    def employed(self) -> None:
        """One neighbor of every source."""
        for index in range(len(self._sources)):
            self._improve(index)

    def onlookers(self) -> None:
        """As many neighbors again, of sources drawn by how good they are beside the others."""
        rewards = np.array([source.reward for source in self._sources])
        spread = max(float(rewards.max() - rewards.min()), 1e-12)
        weights = 0.1 + 0.9 * (rewards - rewards.min()) / spread
        for index in self._rng.choice(len(self._sources), len(self._sources), p=weights / weights.sum()):
            self._improve(int(index))

    def scouts(self) -> None:
        """The source that was in vain longest is given up, if that is long enough; the best one never is."""
        best = max(range(len(self._sources)), key=lambda index: self._sources[index].reward)
        worst = max(range(len(self._sources)), key=lambda index: (index != best, self._sources[index].failures))
        if worst != best and self._sources[worst].failures > _PATIENCE and self.trials.left > 0:
            self._sources[worst] = self._new()

    def _improve(self, index: int) -> None:
        if self.trials.left <= 0 or len(self._sources) < 2:
            return
        source = self._sources[index]
        other = self._sources[(index + 1 + int(self._rng.integers(len(self._sources) - 1))) % len(self._sources)]
        shares = source.shares.copy()
        candidates = self._space.open if len(self._space.open) else np.arange(len(shares))
        changed = self._rng.choice(candidates, max(1, round(_CHANGED * len(candidates))), replace=False)
        factors = self._rng.uniform(-1.0, 1.0, len(changed))
        shares[changed] += factors * (source.shares[changed] - other.shares[changed])
        found = self._look(np.clip(shares, max(self._space.floor, 0.01), 1.0))
        if found.reward > source.reward:
            self._sources[index] = found
        else:
            source.failures += 1

"""The allocation of a network as an episode: one step for each set of coupled channels, the reward at the end.

    state   descriptors of the set, cost left with the widths so far, cost still to be decided on, previous action
    action  share of the set's channels to keep, clipped so that the budgets stay reachable
    reward  of the last step: that of the allocation, less that of the uniform one; 0 before

Source: He et al. 2018, "AMC: AutoML for model compression", section 3.
"""

from typing import Any

import gymnasium
import numpy as np

from graphprune.search.descriptors import NAMES, describe
from graphprune.search.trials import Trials

__all__ = ["PruningEnvironment"]

_COURSE = 3  # columns: cost so far, cost to come, previous action


class PruningEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """Episodes over the sets of one problem.

    Actions are in [-1, 1], which agents with a tanh at their end are made for; -1 is the floor, 1 keeps all. 0, where
    an agent that knows nothing begins, is what a policy without a search keeps, if the search starts from one, else
    midway.

    Args:
        trials: evaluates allocations.
    """

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self._space = trials.space
        floor = trials.space.floor
        middle = np.full(len(trials.space), (floor + 1) / 2)
        if len(trials.starts) > 1:
            middle = np.clip(trials.space.shares(trials.starts[1]), floor, 1.0)
        self._shares = np.stack([np.full_like(middle, floor), middle, np.ones_like(middle)])
        self._table = describe(trials.space.problem)
        self._dense = trials.space.problem.count(trials.space.problem.graph.all_kept())
        self._before: list[int] = []
        self._action = 1.0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(NAMES) + _COURSE,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._before, self._action = [], 1.0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Decide on the next set."""
        share = float(np.interp(float(action[0]), (-1.0, 0.0, 1.0), self._shares[:, len(self._before)]))
        self._action = share
        self._before.append(self._space.clipped(len(self._before), share, self._before))
        if len(self._before) < len(self._space):
            return self._observation(), 0.0, False, False, {}
        widths = self._space.project(self._space.shares(np.array(self._before)))
        reward = self.trials.look(widths) - self.trials.rewards[0]
        return self._observation(), reward, True, False, {"widths": widths}

    def _observation(self) -> np.ndarray:
        done = len(self._before)
        at = min(done, len(self._space) - 1)
        dense, low = self._space.dense.tolist(), self._space.low.tolist()
        so_far = self._share([*self._before, *dense[done:]])
        decided = self._share([*self._before, *low[done:]])
        values = [*self._table[at], so_far, max(0.0, so_far - decided), self._action]
        return np.clip(np.array(values, dtype=np.float32), 0.0, 1.0)

    def _share(self, widths: list[int]) -> float:
        """Cost at these widths, as a share of the dense one; the mean over the units of the budgets."""
        cost = self._space.problem.count(~self._space.removed(widths))
        return float(np.mean([cost[unit] / self._dense[unit] for unit in cost]))

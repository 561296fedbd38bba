"""Policy "ddpg": an actor that goes through the layers and says what share of each is kept, taught by a critic.

The reward comes with the last layer, and one step costs nothing: returns are not discounted, and the critic learns the
reward of the whole episode at each of its steps (n-step returns over all of it), with nothing bootstrapped in between.
Exploration is normal noise on the actions that fades from episode to episode, after some episodes of random actions.

Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning"; He et al. 2018 (AMC), section 3.2
and 4; Xu, Li, Yuan 2023. The agent is stable-baselines3's.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.search.trials import Trials

if TYPE_CHECKING:
    from graphprune.search.environment import PruningEnvironment

__all__ = ["ddpg"]

_WARMUP = 0.2  # share of the episodes with random actions
_NOISE, _LEAST_NOISE = 0.5, 0.05  # standard deviation of the noise on actions in [-1, 1], first and last
_LAYERS = (128, 128)
_LEARNING_RATE = 1e-3
_BATCH = 128
_TAU = 0.01
_SCALE = 10.0  # of rewards: differences between allocations are some points of agreement


def ddpg(problem: Problem) -> np.ndarray:
    """Mask of the groups to remove, (n_groups,).

    Raises:
        UsageError: nothing tries allocations out.
        BudgetError: a budget cannot be reached.
    """
    from graphprune.search.environment import PruningEnvironment  # needs gymnasium

    trials = Trials(problem, "ddpg")
    if trials.left > 0:
        with _callers_randomness_kept():
            _learn(PruningEnvironment(trials))
    return trials.result()


@contextmanager
def _callers_randomness_kept() -> Iterator[None]:
    """The agent seeds the generators that all of a process share; the caller's numbers go on as if it had not."""
    import torch

    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002


def _learn(environment: "PruningEnvironment") -> None:
    from gymnasium.wrappers import TransformReward
    from stable_baselines3 import DDPG

    trials = environment.trials
    episodes, steps = trials.left, len(trials.space)
    random_episodes = max(1, round(_WARMUP * episodes))
    agent = DDPG(
        "MlpPolicy",
        TransformReward(environment, lambda reward: _SCALE * float(reward)),
        learning_rate=_LEARNING_RATE,
        buffer_size=max(1, episodes * steps),
        learning_starts=random_episodes * steps,
        batch_size=_BATCH,
        tau=_TAU,
        gamma=1.0,
        train_freq=(1, "episode"),
        gradient_steps=-1,
        action_noise=_fading_noise(episodes, random_episodes),
        n_steps=steps,
        policy_kwargs={"net_arch": list(_LAYERS)},
        seed=trials.seed % 2**32,  # all that numpy's generators take
        device="cpu",
    )
    agent.learn(total_timesteps=episodes * steps, log_interval=episodes + 1)


def _fading_noise(episodes: int, random_episodes: int) -> Any:
    """Normal noise that fades geometrically over the episodes after the random ones."""
    from stable_baselines3.common.noise import NormalActionNoise

    first = random_episodes + 1
    ratio = (_LEAST_NOISE / _NOISE) ** (1 / max(1, episodes - first))

    class Fading(NormalActionNoise):
        begun = 0

        def reset(self) -> None:
            """An episode begins."""
            self.begun += 1
            self._sigma = np.full(1, max(_NOISE * ratio ** max(0, self.begun - first), _LEAST_NOISE))

    return Fading(np.zeros(1), np.full(1, _NOISE))

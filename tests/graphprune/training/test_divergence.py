"""When a training is given up."""

import math

import pytest

from graphprune.passes.errors import TrainingError
from graphprune.training.divergence import Divergence


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_once(loss):
    with pytest.raises(TrainingError, match=r"at step 4; start afresh with a lower `lr` \(now 0\.5\)"):
        Divergence(ignorance=1.0, lr=0.5).refuse(3, loss, 0.1)


def test_one_bad_step_is_forgiven():
    divergence = Divergence(ignorance=1.0, lr=0.5)
    divergence.refuse(0, 400.0, 400.0)
    for step in range(1, 300):
        divergence.refuse(step, 1.0, 1.0)
    assert divergence.worst == pytest.approx(1.0, abs=0.1)


def test_answers_that_stay_worse_than_one_answer_to_everything_end_it():
    divergence = Divergence(ignorance=1.0, lr=0.5)

    def learn():
        for step in range(300):
            divergence.refuse(step, 20.0, 20.0)

    with pytest.raises(TrainingError, match="diverged"):
        learn()


def test_it_is_seen_coming_before_it_is_refused():
    divergence = Divergence(ignorance=1.0, lr=0.5)
    seen = []

    def learn():
        for step in range(300):
            divergence.refuse(step, 20.0, 20.0)
            seen.append(divergence.is_far_off)

    with pytest.raises(TrainingError):
        learn()
    assert seen[0]
    assert not any(seen[5:])
    assert len(seen) > 20

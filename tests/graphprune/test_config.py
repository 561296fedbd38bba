import dataclasses
import math

import pytest

from graphprune.config import Budget, CompressConfig
from graphprune.passes.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": 0.0}, "`macs` must be between 0 and 1, not 0.0"),
        ({"macs": 2}, "`macs` must be between 0 and 1, not 2"),
        ({"params": 1.0}, "`params` must be between 0 and 1, not 1.0"),
        ({"macs": math.nan}, "`macs` must be between 0 and 1, not nan"),
        ({"macs": (0.5, 1.5), "n_students": 2}, "`macs` must be between 0 and 1, not 1.5"),
        ({"macs": (0.5, 0.4, 0.3), "n_students": 2}, "`macs` gives 3 budgets for 2 students"),
        ({"epochs": -1}, "`epochs` must be at least 0, not -1"),
        ({"batch_size": 1}, "`batch_size` must be at least 2, not 1"),
        ({"lr": -0.1}, "`lr` must be above 0, not -0.1"),
        ({"min_channels": 0}, "`min_channels` must be at least 1, not 0"),
        ({"precision": "half"}, "`precision` must be one of auto, float32, bfloat16, not 'half'"),
        ({"warmup": 0.5, "sparsify": 0.5}, "warmup and sparsify must leave a part"),
        ({"sensitivity": "magic"}, "`sensitivity` must be one of random, l1, l2, taylor"),
        ({"lr": "fast"}, "`lr` must be a number, not 'fast'"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number, not 2.5"),
        ({"policy": "threshold", "speedup": 2.0}, "policy threshold counts channels one by one"),
        ({"policy": "threshold", "latency_ms": (1.0, 2.0), "n_students": 2}, "knows nothing of latency"),
        ({"policy": "threshold", "macs": 0.5, "align": "auto"}, "use knapsack"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError) as caught:
        CompressConfig(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no budget given: say what must be reached with `speedup`"),
        ({"recipe": "combined"}, "no budget given, and policy ddpg searches an allocation for one: say what"),
        ({"policy": "random", "sigma": 2.0}, "no budget given, and policy random searches"),
        ({"policy": "bee-colony"}, "no budget given, and policy bee-colony searches"),
    ],
)
def test_a_missing_budget_is_named(settings, message):
    with pytest.raises(UsageError, match=message):
        CompressConfig(**settings).require_goal()
    CompressConfig(**settings, macs=0.5).require_goal()


def test_single_weights_may_go_without_a_budget():
    CompressConfig(sigma=2.0).require_goal()


def test_the_defaults_are_valid_and_their_phases_fill_the_run():
    config = CompressConfig()
    assert config.warmup + config.sparsify + config.settle == pytest.approx(1.0)
    assert config.budget(0).limits() == {}


def test_every_student_may_have_its_own_budget():
    config = CompressConfig(macs=(0.66, 0.5), params=0.4, n_students=2)
    assert config.budget(0) == Budget(macs=0.66, params=0.4)
    assert config.budget(1).limits() == {"macs": 0.5, "params": 0.4}


def test_plain_values_round_trip():
    config = CompressConfig(macs=(0.66, 0.5), n_students=2, epochs=3.5)
    assert CompressConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match="unknown setting 'speed'"):
        CompressConfig.from_dict({"speed": 2})


def test_resuming_with_another_setting_names_it():
    before = CompressConfig(macs=0.5).fingerprint()
    with pytest.raises(UsageError, match=r"cannot resume: `macs` was 0\.5 and is now 0\.4"):
        CompressConfig(macs=0.4).refuse_resume_from(before)


def test_resuming_may_change_what_does_not_change_the_result():
    before = CompressConfig(macs=0.5).fingerprint()
    CompressConfig(macs=0.5, threads=2, checkpoint_seconds=5, device="cuda").refuse_resume_from(before)
    CompressConfig(macs=0.5).refuse_resume_from({**before, "device": "cuda"})  # of an earlier version


@pytest.mark.parametrize(
    ("one", "other", "tighter"),
    [
        (Budget(macs=0.4), Budget(macs=0.5), True),
        (Budget(macs=0.5), Budget(macs=0.4), False),
        (Budget(macs=0.5), Budget(macs=0.5), False),
        (Budget(macs=0.5, params=0.5), Budget(macs=0.5), True),
        (Budget(macs=0.5), Budget(macs=0.5, params=0.5), False),
        (Budget(macs=0.4, params=0.5), Budget(macs=0.5, params=0.4), False),
        (Budget(speedup=3.0), Budget(speedup=2.0), True),
        (Budget(latency_ms=3.0), Budget(latency_ms=2.0), False),
        (Budget(speedup=3.0), Budget(latency_ms=2.0), False),
        (Budget(macs=0.5), Budget(), True),
    ],
)
def test_budgets_compare_where_each_limit_does(one, other, tighter):
    assert one.is_tighter_than(other) is tighter


def test_the_learning_rate_goes_with_the_course_unless_it_is_given():
    config = CompressConfig(macs=0.5)
    gentle = dataclasses.replace(config, course="reconstructed")
    assert gentle.peak_lr < config.peak_lr == config.fingerprint()["lr"]
    assert gentle.fingerprint()["lr"] == gentle.peak_lr
    assert dataclasses.replace(gentle, lr=0.1).peak_lr == 0.1

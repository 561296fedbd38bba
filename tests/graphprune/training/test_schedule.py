from itertools import pairwise

import pytest

from graphprune.config import CompressConfig
from graphprune.passes.errors import UsageError
from graphprune.training.schedule import Schedule


@pytest.fixture
def schedule():
    return Schedule.of(CompressConfig(macs=0.5, epochs=4, warmup=0.1, sparsify=0.5, fade=0.25, redraw_every=7), 50)


def test_the_phases_follow_each_other(schedule):
    phases = [schedule.phase(step) for step in range(schedule.total)]
    assert schedule.total == 200
    assert phases == ["warm-up"] * 20 + ["sparsify"] * 100 + ["settle"] * 80


def test_the_scheduled_budget_falls_from_dense_to_exactly_the_target(schedule):
    shares = [schedule.share(step, 0.5) for step in range(schedule.total)]
    assert shares[0] == shares[19] == 1.0
    assert all(a >= b for a, b in pairwise(shares))
    assert shares[schedule.final_draw] == shares[-1] == 0.5
    assert shares[schedule.final_draw - 1] < 0.51  # no jump at the end


def test_the_last_draw_is_at_the_full_budget_and_leaves_time_to_fade(schedule):
    draws = [step for step in range(schedule.total) if schedule.is_draw(step)]
    assert draws[0] == schedule.sparsify_from
    assert draws[-1] == schedule.final_draw == schedule.settle_from - schedule.fade_steps
    assert all(b - a <= 7 for a, b in pairwise(draws))


def test_no_group_is_left_fading_when_the_settle_phase_begins(schedule):
    for step in range(schedule.sparsify_from, schedule.final_draw + 1):
        assert 1 <= schedule.steps_to_zero(step) <= schedule.settle_from - step


def test_the_sparsity_ramp_is_a_sigmoid_over_the_first_half(schedule):
    ramp = [schedule.ramp(step) for step in range(schedule.total)]
    assert ramp[:20] == [0.0] * 20
    assert all(0 <= a <= b <= 1 for a, b in pairwise(ramp))
    assert ramp[44] == pytest.approx(0.5, abs=0.05)
    assert ramp[69] == pytest.approx(1.0)


def test_the_learning_rate_rises_then_falls_to_its_final_share():
    schedule = Schedule.of(CompressConfig(macs=0.5, epochs=4, lr_warmup=0.1, lr_final=0.05), 50)
    factors = [schedule.lr_factor(step) for step in range(schedule.total)]
    assert factors[0] < factors[10] < factors[19] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(factors[20:]))
    assert factors[-1] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("total", [10, 11, 13, 17, 40, 101])
@pytest.mark.parametrize(("warmup", "sparsify"), [(0.0, 0.9), (0.05, 0.3), (0.3, 0.1), (0.1, 0.85)])
def test_short_runs_keep_every_phase_in_order(total, warmup, sparsify):
    schedule = Schedule.of(CompressConfig(macs=0.5, epochs=1, warmup=warmup, sparsify=sparsify), total)
    assert 0 <= schedule.sparsify_from <= schedule.final_draw < schedule.settle_from < schedule.total
    assert schedule.is_draw(schedule.final_draw)


@pytest.mark.parametrize("course", ["dynamic", "static", "one-shot"])
@pytest.mark.parametrize("fade", [0.01, 0.2, 1.0])
def test_whatever_the_shares_a_short_run_ends_on_its_budget(course, fade):
    shares = [(w / 100, s / 100) for w in range(0, 99, 7) for s in (1, 5, 20, 45, 70, 99) if w + s < 100]
    for warmup, sparsify in shares:
        config = CompressConfig(macs=0.5, warmup=warmup, sparsify=sparsify, fade=fade, course=course, lr_warmup=warmup)
        for total in range(10, 41):
            schedule = Schedule.of_steps(config, total)
            assert 0 <= schedule.sparsify_from <= schedule.final_draw < schedule.settle_from < total
            assert schedule.is_draw(schedule.final_draw)
            assert schedule.share(schedule.final_draw, 0.5) == 0.5
            ramp = [schedule.ramp(step) for step in range(total)]
            assert all(0 <= a <= b <= 1 for a, b in pairwise(ramp))
            assert ramp[-1] == pytest.approx(1.0)
            assert all(0 <= schedule.lr_factor(step) <= 1 for step in range(total))


def test_a_run_too_short_to_compress_anything_is_refused():
    with pytest.raises(UsageError, match=r"`epochs=0\.1` gives 5 steps of 64 images; at least 10"):
        Schedule.of(CompressConfig(macs=0.5, epochs=0.1), 50)


@pytest.mark.parametrize(("per_step", "first"), [(0, 0), (3, 1), (2, 2), (1, 3)])
def test_no_set_is_drawn_before_every_student_has_had_a_turn(per_step, first):
    config = CompressConfig(macs=0.5, epochs=1, n_students=3, students_per_step=per_step, warmup=0.0)
    schedule = Schedule.of(config, 30)
    assert schedule.sparsify_from == first
    assert not any(schedule.is_draw(step) for step in range(first))

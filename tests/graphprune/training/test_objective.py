"""Several students of one run."""

import dataclasses

import numpy as np
import pytest
import torch
from digit_runs import SETTINGS, engine

from graphprune.data.batches import evaluation_batches
from graphprune.errors import UsageError
from graphprune.training.student import Student


def test_a_student_learns_from_the_one_with_the_looser_budget_and_not_the_other_way_round():
    config = dataclasses.replace(SETTINGS, macs=(0.6, 0.4), n_students=2, epochs=4)
    large, small = engine(config).run()
    assert 0.55 < large.cost["macs"] <= 0.6
    assert 0.35 < small.cost["macs"] <= 0.4
    assert min(large.agreement, small.agreement) > 0.8
    assert "loss_mutual" not in large.history[-1]
    assert small.history[-1]["loss_mutual"] > 0


def test_students_of_budgets_that_do_not_compare_teach_each_other():
    config = dataclasses.replace(SETTINGS, macs=(0.6, 0.5), params=(0.5, 0.6), n_students=2, epochs=1)
    assert all(result.history[-1]["loss_mutual"] > 0 for result in engine(config).run())


def test_all_students_learn_from_one_pass_of_the_teacher(monkeypatch):
    run = engine(dataclasses.replace(SETTINGS, macs=(0.6, 0.5, 0.4), n_students=3, epochs=1))
    shapes = []
    use = run._use

    def use_and_watch(precision):
        use(precision)
        run.teacher.tapped.inner.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))

    monkeypatch.setattr(run, "_use", use_and_watch)
    run.run()
    steps = sum(shape[0] == SETTINGS.batch_size for shape in shapes)
    looks = len(shapes) - steps  # at the images held out, once for the whole run
    assert steps == run.schedule.total
    assert looks == len(list(evaluation_batches(run.held_out, 4 * SETTINGS.batch_size)))


TURNS = dataclasses.replace(SETTINGS, macs=(0.6, 0.5, 0.4), n_students=3, students_per_step=2, epochs=3)


def test_students_that_take_turns_reach_their_budgets_in_fewer_steps_of_their_own(monkeypatch):
    run = engine(TURNS)
    learned = []
    learn = Student.learn

    def noted(self, step, schedule):
        learned.append((step, self.number))
        learn(self, step, schedule)

    monkeypatch.setattr(Student, "learn", noted)
    results = run.run()
    by_step = [sorted(number for at, number in learned if at == step) for step in range(run.schedule.total)]
    assert by_step[:4] == [[0, 1], [0, 2], [1, 2], [0, 1]]
    assert {len(numbers) for numbers in by_step} == {2}
    assert [round(result.cost["macs"], 1) for result in results] == [0.6, 0.5, 0.4]
    assert all(result.agreement > 0.7 for result in results)
    assert all("loss_out" in record for result in results for record in result.history)
    with pytest.raises(UsageError, match="`students_per_step=2` is more than there are"):
        engine(dataclasses.replace(TURNS, macs=0.5, n_students=1))


def test_students_that_take_turns_are_resumed_where_they_were(tmp_path):
    config = dataclasses.replace(TURNS, epochs=1.5, checkpoint_steps=7, eval_every=9)
    straight = engine(config).run()

    def stop(step, *_):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(config, checkpoint=tmp_path / "run.pt", progress=stop).run()
    resumed = engine(config, checkpoint=tmp_path / "run.pt").run(resume=True)
    for one, other in zip(straight, resumed, strict=True):
        assert one.history == other.history
        assert all(torch.equal(value, other.state_dict[name]) for name, value in one.state_dict.items())


def test_students_of_one_budget_try_different_sets():
    config = dataclasses.replace(SETTINGS, n_students=3, epochs=1)
    run = engine(config)
    first, *others = run.run()
    assert all(0.45 < result.cost["macs"] <= 0.5 for result in (first, *others))
    assert not any(np.array_equal(first.removed, other.removed) for other in others)
    assert first.history[-1]["loss_mutual"] > 0
    assert run.students[0].set._factors.tolist() == [1.0] * run.graph.n_groups

"""Students that begin without what goes, fitted in closed form, and are never delivered worse than that."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from digit_runs import SETTINGS, engine, teacher

from graphprune.delivery.closed_form import ClosedForm
from graphprune.importance.output_loss import flatten_outputs
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.slim import mask
from graphprune.reconstruction.reconstruct import Reconstruction
from graphprune.training.start import Standing

RECONSTRUCTED = dataclasses.replace(SETTINGS, course="reconstructed", epochs=1, lr=2e-3)


def begun(config=RECONSTRUCTED, **options):
    run = engine(config, count=400, **options)
    closed_form = ClosedForm(run.graph, run.batches.source, config.seed)
    run.begin(closed_form.starts(run.students), closed_form.to_dict())
    return run


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("shrink", [True, False])
def test_students_begin_as_what_is_reconstructed_of_images_that_are_learned_from(shrink):
    captured, graph = teacher()
    run = begun(dataclasses.replace(RECONSTRUCTED, shrink=shrink))
    run._begin()
    (student,) = run.students
    assert graph.cost.macs(~student.removed()) <= 0.5 * graph.cost.macs(graph.all_kept())
    seen = Reconstruction(graph, run.batches.source)
    seen.look(moments=False)
    state, _ = seen.fit(graph.plan(student.removed()))
    assert same(state, student.dense_state())
    assert student.present.all() != shrink
    masked = mask(captured, graph.plan(student.removed()))
    masked.load_state_dict(state)
    batch = torch.from_numpy(run.held_out.batch(slice(0, 32)))
    student.tapped.eval()
    with torch.no_grad():
        (answer,) = flatten_outputs(student(batch)[0])
        torch.testing.assert_close(answer, masked.eval()(batch), rtol=1e-4, atol=1e-4)
    plain = mask(captured, graph.plan(student.removed())).eval()
    with torch.no_grad():
        kept = (plain(batch).argmax(1) == captured.eval()(batch).argmax(1)).float().mean()
    assert run.starts[0].standing.agreement > float(kept)


def test_training_takes_nothing_more_out_and_is_no_worse_than_its_start():
    run = begun()
    (result,) = run.run()
    assert np.array_equal(result.removed, run.starts[0].removed)
    assert {record["phase"] for record in result.history} == {"settle"}
    assert {record["macs"] for record in result.history} == {result.cost["macs"]}
    assert not Standing(result.agreement, 0.0).is_worse_than(result.start)
    assert not result.is_start
    assert not same(run.starts[0].state_dict, result.state_dict)


@pytest.mark.parametrize("lr", [0.5, 1e9])  # one that learns nothing good, and one that runs away
def test_what_learning_has_made_worse_is_delivered_as_it_began(lr, caplog):
    run = begun(dataclasses.replace(RECONSTRUCTED, lr=lr, grad_clip=0.0, lr_warmup=0.0))
    (result,) = run.run()
    assert result.is_start
    assert same(result.state_dict, run.starts[0].state_dict)
    assert result.agreement == run.starts[0].standing.agreement
    assert "has become worse by learning" in caplog.text
    assert "try a lower `lr`" in caplog.text


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    whole = begun().run()[0]

    def stop(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    config = dataclasses.replace(RECONSTRUCTED, checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        begun(config, checkpoint=path, progress=stop).run()
    again = engine(config, count=400, checkpoint=path)
    (result,) = again.run(resume=True)
    assert same(whole.state_dict, result.state_dict)
    assert result.start == whole.start
    assert set(again.facts) == {"images", "layers", "text"}
    assert "layers fitted in closed form" in again.facts["text"]["0"]


def test_members_of_a_family_begin_at_their_budgets_and_twins_differ():
    family = begun(dataclasses.replace(RECONSTRUCTED, macs=(0.7, 0.4), n_students=2)).run()
    assert [result.cost["macs"] <= budget for result, budget in zip(family, (0.7, 0.4), strict=True)] == [True, True]
    assert family[0].cost["macs"] > 0.6
    twins = begun(dataclasses.replace(RECONSTRUCTED, n_students=2, diversity=0.5))
    assert not np.array_equal(twins.starts[0].removed, twins.starts[1].removed)


def test_it_is_said_when_nobody_has_fitted_anything():
    with pytest.raises(UsageError, match=r"see Engine\.begin"):
        engine(RECONSTRUCTED, count=400).run()


@pytest.mark.parametrize(
    ("now", "start", "is_worse"),
    [
        ((0.90, 0.2), (0.92, 0.1), True),
        ((0.90, 0.05), (0.92, 0.1), False),  # one image less, and nearer everywhere
        ((0.92, 0.2), (0.92, 0.1), False),
        ((0.95, 0.05), (0.92, 0.1), False),
        ((0.10, math.nan), (0.92, 0.1), True),
        ((math.nan, math.nan), (math.nan, math.nan), False),  # nothing to judge by
    ],
)
def test_worse_is_what_agrees_less_and_is_no_nearer(now, start, is_worse):
    assert Standing(*now).is_worse_than(Standing(*start)) is is_worse

import dataclasses
import math

import numpy as np
import pytest
import torch
from digit_runs import SETTINGS, Net, TwoOutputs, accuracy, compressed, engine, images, teacher, trained

from graphprune.passes.errors import (
    BudgetError,
    DataError,
    GraphPruneError,
    PlanError,
    TrainingError,
    UnsupportedModelError,
    UsageError,
)


def test_the_budget_is_met_and_the_student_still_sees_what_its_teacher_sees():
    result = compressed()
    assert 0.47 <= result.cost["macs"] <= 0.5  # one channel of the trunk is 3 % of this small network
    assert result.agreement > 0.9
    assert accuracy(trained()) > 0.9
    assert accuracy(result.state_dict) > accuracy(trained()) - 0.08


def test_removed_groups_are_exactly_zero_and_no_others():
    _, graph = teacher()
    result = compressed()
    assert result.removed.any()
    for (name, dim), ids in graph.axes.items():
        if "running" in name:
            continue
        gone = np.isin(ids, np.flatnonzero(result.removed))
        values = result.state_dict[name].movedim(dim, 0)
        assert (values[torch.from_numpy(gone)] == 0).all(), name
        alive = values[torch.from_numpy(~gone)].flatten(1) if values.ndim > 1 else values[torch.from_numpy(~gone), None]
        assert (alive != 0).any(1).all(), name


def test_the_plan_is_that_of_the_removed_groups():
    _, graph = teacher()
    assert np.array_equal(graph.removed_by(compressed().plan), compressed().removed)


def test_every_set_keeps_a_channel():
    _, graph = teacher()
    result = engine(dataclasses.replace(SETTINGS, macs=0.08, epochs=1)).run()[0]
    assert result.cost["macs"] <= 0.08
    assert all((~result.removed[s.groups]).sum() >= 1 for s in graph.sets)


def test_several_budgets_hold_together():
    result = engine(dataclasses.replace(SETTINGS, macs=0.7, params=0.4, epochs=1)).run()[0]
    assert result.cost["macs"] <= 0.7
    assert 0.36 <= result.cost["params"] <= 0.4


def test_the_teacher_is_left_as_it_was():
    captured, _ = teacher()
    before = {k: v.clone() for k, v in captured.state_dict().items()}
    engine(dataclasses.replace(SETTINGS, epochs=1, precision="auto")).run()
    assert all(torch.equal(v, before[k]) for k, v in captured.state_dict().items())
    assert not any(p.grad is not None for p in captured.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    config = dataclasses.replace(SETTINGS, epochs=1)
    first, again = engine(config).run()[0], engine(config).run()[0]
    other = engine(dataclasses.replace(config, seed=1)).run()[0]
    assert all(torch.equal(v, again.state_dict[k]) for k, v in first.state_dict.items())
    assert not torch.equal(first.state_dict["stem.weight"], other.state_dict["stem.weight"])


def test_the_history_tells_how_it_went():
    history = compressed().history
    assert [r["phase"] for r in history if r["phase"] != "sparsify"][-1] == "settle"
    assert history[-1]["macs"] == compressed().cost["macs"]
    assert history[-1]["agreement"] > 0.85
    schedule = engine().schedule
    draws = [step for step in range(schedule.total) if schedule.is_draw(step)]
    for record in history:
        scheduled = [schedule.share(step, 0.5) for step in draws if step < record["step"]]
        assert record["macs"] <= (scheduled[-1] if scheduled else 1.0)
    assert all(math.isfinite(r["loss"]) and r["loss"] >= r["loss_out"] for r in history)


def test_no_group_is_cut_suddenly():
    """When the set becomes final, every group that is still there goes to zero over many steps."""
    run = engine(SETTINGS)
    student, last = run.students[0], {}
    drops = []

    def watch(step, total, loss, cost, phase):
        norms = student.index.norms()
        if last:
            gone = (norms == 0) & (last["norms"] > 0)
            drops.extend((last["norms"] / dense)[gone].tolist())
        last["norms"] = norms

    dense = student.index.norms()
    run.progress = watch
    run.run()
    assert len(drops) == int(student.set.dead.sum())
    assert max(drops) < 0.25


def test_progress_is_told_after_every_step():
    told = []
    engine(dataclasses.replace(SETTINGS, epochs=1), progress=lambda *a: told.append(a)).run()
    steps, totals = [a[0] for a in told], {a[1] for a in told}
    assert steps == list(range(1, len(told) + 1))
    assert totals == {len(told)}
    assert told[0][3] == {"macs": 1.0, "params": 1.0}
    assert [a[4] for a in told][0::8][-1] == "settle"


def test_a_network_with_several_outputs_learns_to_reproduce_them():
    result = engine(SETTINGS, kind=TwoOutputs).run()[0]
    assert 0.45 <= result.cost["macs"] <= 0.5
    assert result.agreement > 0.5  # share of the outputs' spread that is reproduced
    assert result.history[-1]["agreement"] > min(r["agreement"] for r in result.history)


@pytest.mark.parametrize("sensitivity", ["random", "l1", "l2", "bn_scale", "fpgm", "apoz", "entropy", "hrank"])
def test_every_sensitivity_reaches_the_budget(sensitivity):
    result = engine(dataclasses.replace(SETTINGS, epochs=1, sensitivity=sensitivity)).run()[0]
    assert 0.45 <= result.cost["macs"] <= 0.5


def test_fewer_images_than_a_batch():
    result = engine(dataclasses.replace(SETTINGS, epochs=12), count=20).run()[0]
    assert result.cost["macs"] <= 0.5


def test_bfloat16_runs():
    result = engine(dataclasses.replace(SETTINGS, epochs=1, precision="bfloat16")).run()[0]
    assert result.cost["macs"] <= 0.5
    assert all(v.dtype != torch.bfloat16 for v in result.state_dict.values())


def test_a_diverging_loss_is_an_error_that_names_the_step(tmp_path):
    config = dataclasses.replace(SETTINGS, lr=1e12, grad_clip=0.0, epochs=1, checkpoint_steps=1, lr_warmup=0.0)
    with pytest.raises(
        TrainingError, match=r"diverged by step \d+|(at|not finite after) step \d+; start afresh with a lower `lr`"
    ):
        engine(config, checkpoint=tmp_path / "checkpoint.pt").run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(v.isfinite().all() for v in state["students"][0]["module"].values())


def test_a_loss_that_grows_without_bounds_is_an_error_before_it_is_infinite(tmp_path):
    run = engine(dataclasses.replace(SETTINGS, epochs=2), checkpoint=tmp_path / "checkpoint.pt")

    def spoil(step, total, loss, cost, phase):
        with torch.no_grad():  # answers that are surely wrong, and far from infinite
            head = run.students[0].module.get_parameter("head.1.weight")
            head.copy_(-400 * trained()["head.1.weight"][:, : head.shape[1]])

    run.progress = spoil
    with pytest.raises(TrainingError, match=r"the training has diverged by step \d+: .* lower `lr` \(now 0.02\)"):
        run.run()
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path, fill_disk):
    path, kept = tmp_path / "checkpoint.pt", []
    config = dataclasses.replace(SETTINGS, epochs=1, checkpoint_steps=5)

    def fill(step, *_):
        if step == 10:
            kept.append(path.read_bytes())
            fill_disk()

    with pytest.raises(GraphPruneError, match=r"checkpoint\.pt: the disk is full") as caught:
        engine(config, checkpoint=path, progress=fill).run()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == kept[0]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    fill_disk(False)
    resumed = engine(config, checkpoint=path).run(resume=True)[0]
    assert resumed.history == engine(config).run()[0].history


def test_layers_that_are_frozen_keep_their_channels():
    _, graph = teacher()
    result = engine(dataclasses.replace(SETTINGS, epochs=1, freeze=("b.0", "down"))).run()[0]
    kept = {s.name: int((~result.removed[s.groups]).sum()) for s in graph.sets}
    assert kept["b.0"] == 16
    assert kept["down.0"] == 16
    assert result.cost["macs"] <= 0.5
    with pytest.raises(PlanError, match="nothing is named 'layer9'"):
        engine(dataclasses.replace(SETTINGS, freeze=("layer9",)))


@pytest.mark.parametrize("course", ["static", "one-shot"])
def test_other_courses_draw_once(course):
    run = engine(dataclasses.replace(SETTINGS, epochs=1, course=course, eval_every=1))
    result = run.run()[0]
    assert [step for step in range(run.schedule.total) if run.schedule.is_draw(step)] == [run.schedule.sparsify_from]
    assert 0.45 <= result.cost["macs"] <= 0.5
    costs = [record["macs"] for record in result.history if record["phase"] != "warm-up"]
    assert set(costs) == {result.cost["macs"]}
    settled = [record["zero_groups"] for record in result.history if record["phase"] == "settle"]
    assert set(settled) == {int(result.removed.sum())}
    fading = [record["zero_groups"] for record in result.history if record["phase"] == "sparsify"]
    assert len(fading) == 1 if course == "one-shot" else min(fading) == 0


def test_without_the_loss_on_features_nothing_is_tapped():
    run = engine(dataclasses.replace(SETTINGS, epochs=1, lambda_feature=0.0))
    assert run.taps == []
    assert "loss_feature" not in run.run()[0].history[0]


def test_no_budget_no_run():
    with pytest.raises(UsageError, match="no budget given"):
        engine(dataclasses.replace(SETTINGS, macs=None))


def test_a_budget_out_of_reach_is_refused_before_any_training():
    with pytest.raises(BudgetError, match=r"`params=0\.001` cannot be reached"):
        engine(dataclasses.replace(SETTINGS, params=0.001))


def test_one_image_is_not_enough():
    with pytest.raises(DataError):
        engine(count=1)


def test_a_model_of_one_batch_size_is_refused():
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x.reshape(2, 1, 8, 8))

    with pytest.raises(UnsupportedModelError, match="takes batches of exactly 2"):
        engine(kind=Fixed)


def test_classes_are_not_looked_for_in_one_number():
    class Number(Net):
        def forward(self, x):
            return super().forward(x).sum(1)

    with pytest.raises(UsageError, match=r"`output_loss=.kl.` compares classes"):
        engine(dataclasses.replace(SETTINGS, output_loss="kl"), kind=Number)


def test_what_the_outputs_are_taken_for_is_said(caplog):
    with caplog.at_level("INFO", "graphprune"):
        assert [form.name for form in engine().loss.forms] == ["logits"]
        assert [f.name for f in engine(dataclasses.replace(SETTINGS, output_loss="mse")).loss.forms] == ["values"]
    said = [record.message for record in caplog.records if record.message.startswith("outputs: ")]
    assert said == ['outputs: class logits; `output_loss="mse"` if they are numbers', "outputs: numbers"]


def test_nothing_to_learn_from():
    class Bright(Net):
        def forward(self, x):
            return x.mean((2, 3)) > 0

    with pytest.raises(TrainingError, match="no floating-point tensor"):
        engine(kind=Bright)


def test_who_gives_an_index_alone_learns_what_it_is_one_of():
    class Classes(Net):
        def forward(self, x):
            return super().forward(x).argmax(1)

    run = engine(kind=Classes)
    assert [form.name for form in run.loss.forms] == ["logits"]
    batch = torch.from_numpy(images().batch(slice(0, 8)))
    assert run.teacher.answers(batch)[0].shape == (8, 10)


def test_values_are_measured_against_the_spread_of_the_teachers():
    run = engine(SETTINGS, kind=TwoOutputs)
    answers = run.teacher.answers(torch.from_numpy(images().batch(slice(0, 400))))
    assert run.loss.spreads == pytest.approx([float(a.var(correction=0)) for a in answers], rel=0.2)

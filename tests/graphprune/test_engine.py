import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.data.batches import evaluation_batches
from graphprune.engine import Engine
from graphprune.passes.errors import (
    BudgetError,
    DataError,
    GraphPruneError,
    PlanError,
    TrainingError,
    UnsupportedModelError,
    UsageError,
)
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.student import Student

SETTINGS = CompressConfig(macs=0.5, epochs=5, batch_size=32, flip=False, crop=False, precision="float32", threads=1)


class Net(nn.Module):
    """Two residual stages on 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 10))

    def features(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.down(F.relu(x + self.a(x)))
        return F.relu(x + self.b(x))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class TwoOutputs(Net):
    """Dense prediction: a map and a vector."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        features = self.features(x)
        return {"map": self.map(features), "vector": self.head(features.mean((2, 3)))}


@cache
def digits():
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))  # the file is sorted by writer
    return (pixels.reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8)[order], labels.astype(np.int64)[order]


def images(count=800):
    return ImageSource(digits()[0][:count], Preprocess((8, 8), mean=(0.3,), std=(0.35,), channels=1))


@cache
def trained():
    """State of a network trained with labels: the only place where labels are used."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, x, y = Net(), torch.from_numpy(images().batch(slice(None))), torch.from_numpy(digits()[1][:800])
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(8):
        for chosen in torch.randperm(800).split(40):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return net.eval().state_dict()


@cache
def teacher(kind=Net):
    net = kind()
    net.load_state_dict(trained(), strict=False)
    captured = capture(net.eval(), (torch.randn(2, 1, 8, 8),))
    return captured, analyze(captured)


def engine(config=SETTINGS, kind=Net, count=800, **options):
    captured, graph = teacher(kind)
    return Engine(captured, graph, images(count), config, **options)


@cache
def compressed():
    return engine().run()[0]


def accuracy(state_dict):
    net = Net()
    net.load_state_dict(state_dict)
    x = torch.from_numpy(ImageSource(digits()[0][800:], images().preprocess).batch(slice(None)))
    with torch.no_grad():
        return float((net.eval()(x).argmax(1).numpy() == digits()[1][800:]).mean())


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


def test_two_students_with_their_own_budgets_teach_each_other():
    config = dataclasses.replace(SETTINGS, macs=(0.6, 0.4), n_students=2, epochs=4)
    large, small = engine(config).run()
    assert 0.55 < large.cost["macs"] <= 0.6
    assert 0.35 < small.cost["macs"] <= 0.4
    assert min(large.agreement, small.agreement) > 0.8
    assert large.history[-1]["loss_mutual"] > 0


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
    with pytest.raises(UsageError, match="--students-per-step 2: there is no such number"):
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
        TrainingError, match=r"diverged by step \d+|(at|not finite after) step \d+; start afresh with a lower --lr"
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
    with pytest.raises(TrainingError, match=r"the training has diverged by step \d+: .* lower --lr \(now 0.02\)"):
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
    with pytest.raises(BudgetError, match=r"--params 0\.001 cannot be reached"):
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

    with pytest.raises(UsageError, match="--output-loss kl compares classes"):
        engine(dataclasses.replace(SETTINGS, output_loss="kl"), kind=Number)


def test_what_the_outputs_are_taken_for_is_said(caplog):
    with caplog.at_level("INFO", "graphprune"):
        assert engine().loss.kind == "logits"
        assert engine(dataclasses.replace(SETTINGS, output_loss="mse")).loss.kind == "values"
    said = [record.message for record in caplog.records if record.message.startswith("outputs: ")]
    assert said == ["outputs: class logits; --output-loss mse if they are numbers", "outputs: numbers"]


def test_nothing_to_learn_from():
    class Classes(Net):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(TrainingError, match="no floating-point tensor"):
        engine(kind=Classes)


def test_weights_that_are_held_at_zero_do_not_count_in_the_norm_that_is_clipped():
    run = engine(dataclasses.replace(SETTINGS, sigma=1.0, grad_clip=0.5))
    (student,) = run.students
    for parameter in student.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ((weight, mask),) = student._thinned
    assert 0 < mask.sum() < mask.numel()
    weight.grad.fill_(1.0)
    student.learn(0, run.schedule)
    torch.testing.assert_close(weight.grad, 0.5 / mask.sum().sqrt() * mask)


def test_values_are_measured_against_the_spread_of_the_teachers():
    run = engine(SETTINGS, kind=TwoOutputs)
    answers = run.teacher.answers(torch.from_numpy(images().batch(slice(0, 400))))
    assert run.loss.spreads == pytest.approx([float(a.var(correction=0)) for a in answers], rel=0.2)


@pytest.mark.parametrize("setting", ["kl", "mse"])
def test_images_held_out_are_looked_at_a_few_at_a_time(monkeypatch, setting):
    run = engine(dataclasses.replace(SETTINGS, batch_size=8, output_loss=setting))
    seen = []
    run.teacher.tapped.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run.judge.agreement(run.students[0])
    run.judge.agreement(run.students[0])
    times = 1 if setting == "kl" else 2
    assert seen == times * [len(batch) for batch in evaluation_batches(run.held_out, 32)]

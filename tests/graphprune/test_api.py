from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune import api
from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import BudgetError, ModelLoadError, PlanError, UsageError

INPUTS = (torch.zeros(2, 3, 8, 8),)


class Net(nn.Module):
    """A trunk of 8 channels around a block of 16, then a transposed convolution of 6."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.up(torch.relu(x + self.block(x)))))


@pytest.fixture(scope="module")
def graph():
    return gp.trace(Net().eval(), INPUTS)


def widths(graph, plan):
    removed = graph.removed_by(plan)
    return {s.name: int((~removed[s.groups]).sum()) for s in graph.sets}


def test_ratio_takes_the_same_share_of_every_set(graph):
    assert widths(graph, gp.plan(graph, ratio=0.5)) == {"stem": 4, "block.0": 8, "up": 3}


def test_the_channels_with_the_smallest_weights_go():
    model = Net().eval()
    with torch.no_grad():
        for parameter in (model.block[0].weight, model.block[0].bias, model.block[1].weight, model.block[1].bias):
            parameter[[2, 5]] *= 1e-3
        model.block[3].weight[:, [2, 5]] *= 1e-3
    graph = gp.trace(model, INPUTS)
    for importance in ("l1", "l2"):
        plan = gp.plan(graph, ratio=2 / 16, importance=importance)
        assert plan.removed["block.0.weight"][0] == (2, 5)


def test_given_scores_decide(graph):
    scores = np.arange(graph.n_groups, dtype=float)
    block = next(s for s in graph.sets if s.name == "block.0")
    removed = graph.removed_by(gp.plan(graph, ratio=0.25, importance=scores))
    assert set(np.flatnonzero(removed)) & set(block.groups) == set(block.groups[:4])
    flipped = graph.removed_by(gp.plan(graph, ratio=0.25, importance=torch.tensor(-scores)))
    assert set(np.flatnonzero(flipped)) & set(block.groups) == set(block.groups[-4:])


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"macs": 0.6, "params": 0.5}])
def test_budgets_are_met_by_counting(graph, budget):
    kept = ~graph.removed_by(gp.plan(graph, **budget))
    for unit, share in budget.items():
        cost = getattr(graph.cost, unit)
        assert 0.5 * share < cost(kept) / cost(graph.all_kept()) <= share


def test_align_keeps_multiples(graph):
    assert widths(graph, gp.plan(graph, macs=0.5, align=4)).keys() == {"stem", "block.0", "up"}
    for name, width in widths(graph, gp.plan(graph, ratio=0.6, align=4)).items():
        assert width % 4 == 0, name


@pytest.mark.parametrize(
    ("pattern", "untouched"),
    [
        ("stem", {"stem"}),
        ("block", {"stem", "block.0"}),
        ("block.0.weight", {"block.0"}),
        ("up", {"up"}),
        ("*.0", {"block.0"}),
    ],
)
def test_freeze_keeps_the_output_channels_of_what_is_named(graph, pattern, untouched):
    full = {"stem": 8, "block.0": 16, "up": 6}
    found = widths(graph, gp.plan(graph, ratio=0.5, freeze=[pattern]))
    assert {name for name in full if found[name] == full[name]} == untouched


def test_a_single_pattern_needs_no_list(graph):
    alone, listed = (gp.plan(graph, ratio=0.5, freeze=freeze) for freeze in ("stem", ["stem"]))
    assert alone.to_dict() == listed.to_dict()


def test_freeze_with_a_typo_is_an_error(graph):
    with pytest.raises(PlanError, match="nothing is named 'stam'"):
        gp.plan(graph, ratio=0.5, freeze=["stam"])


def test_random_plans_follow_their_seed(graph):
    first, again, other = (gp.plan(graph, ratio=0.5, importance="random", seed=s).to_dict() for s in (1, 1, 2))
    assert first == again
    assert first["removed"] != other["removed"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "either ratio=, or macs="),
        ({"ratio": 0.5, "policy": "knapsack"}, "policy knapsack is for budgets, leave it out"),
        ({"ratio": 0.5, "macs": 0.5}, "either ratio=, or macs="),
        ({"ratio": 1.0}, "ratio must be between 0 and 1"),
        ({"macs": float("nan")}, "macs must be between 0 and 1"),
        ({"ratio": 0.5, "align": 0}, "align must be at least 1"),
        ({"ratio": 0.5, "align": 3.5}, "align must be a whole number"),
        ({"ratio": 0.5, "align": True}, "align must be a whole number"),
        ({"ratio": "half"}, "ratio must be a number"),
        ({"ratio": 0.5, "min_channels": -3}, "min_channels must be at least 0"),
        ({"ratio": 0.5, "min_channels": "4"}, "min_channels must be a whole number"),
        ({"ratio": 0.5, "seed": -1}, "seed must be at least 0"),
        ({"ratio": 0.5, "output_loss": "klx"}, "`output_loss` must be one of auto, kl, mse"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs images"),
        ({"ratio": 0.5, "importance": "best"}, "must be one of"),
    ],
)
def test_bad_arguments_are_usage_errors(graph, arguments, reason):
    with pytest.raises(UsageError, match=reason):
        gp.plan(graph, **arguments)


def test_numbers_of_other_libraries_are_numbers(graph, tmp_path):
    plan = gp.plan(graph, macs=np.float32(0.5), align=np.int64(4))
    assert graph.removed_by(plan).tolist() == graph.removed_by(gp.plan(graph, macs=0.5, align=4)).tolist()
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json").to_dict() == plan.to_dict()


@pytest.mark.parametrize("scores", [np.ones(3), np.full(30, np.nan)])
def test_bad_scores_are_refused(graph, scores):
    with pytest.raises(PlanError, match="30 finite numbers"):
        gp.plan(graph, ratio=0.5, importance=scores)


def test_an_unreachable_budget_says_what_can_be_reached(graph):
    with pytest.raises(BudgetError, match="of the macs remain"):
        gp.plan(graph, macs=0.001)


def test_a_plan_slims_and_survives_its_file(graph, tmp_path):
    model = Net().eval()
    plan = gp.plan(graph, ratio=0.5)
    plan.save(tmp_path / "plan.json")
    x = torch.randn(3, 3, 8, 8)
    slim = gp.slim(model, gp.PruningPlan.load(tmp_path / "plan.json"))
    assert isinstance(slim, Net)
    assert slim.block[0].weight.shape == (8, 4, 3, 3)
    torch.testing.assert_close(slim(x), gp.mask(model, plan)(x))


def test_files_are_traced_and_planned_as_modules_are(graph, tmp_path):
    model = Net().eval()
    gp.save(model, tmp_path / "net.pt2", INPUTS)
    gp.export_onnx(model, INPUTS, tmp_path / "net.onnx")
    expected = sorted(widths(graph, gp.plan(graph, ratio=0.5)).values())
    for name in ("net.pt2", "net.onnx"):
        traced = gp.trace(tmp_path / name)
        assert sorted(widths(traced, gp.plan(traced, ratio=0.5)).values()) == expected
        assert traced.cost.macs(traced.all_kept()) == graph.cost.macs(graph.all_kept())
    frozen = gp.trace(tmp_path / "net.onnx")
    assert 6 in widths(frozen, gp.plan(frozen, ratio=0.5, freeze=["up"])).values()
    with pytest.raises(ModelLoadError):
        gp.trace(tmp_path / "missing.pt2")


class Watch:
    """A stopwatch of a network that takes 4 ms; latencies are not asked of it."""

    model = None

    def share_of(self, speedup, latency_ms):
        return latency_ms / self.dense_ms()

    def dense_ms(self):
        return 4.0

    def share(self, kept):
        return 0.9


def test_a_latency_that_the_dense_network_has_asks_for_nothing(graph):
    plain = gp.plan(graph, macs=0.7)
    found = gp.plan(graph, macs=0.7, latency_ms=100.0, stopwatch=Watch())
    assert (graph.removed_by(found) == graph.removed_by(plain)).all()
    with pytest.raises(UsageError, match="takes 4 ms here, less than the 100 ms asked for: there is nothing to do"):
        gp.plan(graph, latency_ms=100.0, stopwatch=Watch())


def test_a_network_that_became_slower_than_the_limit_is_not_taken(graph):
    class Slow(Watch):
        def share(self, kept):
            return 1.2

        def reach(self, share, allocate):
            raise BudgetError(f"{share:.4f} was not reached")

    with pytest.raises(BudgetError, match=r"1\.1000 was not reached"):
        gp.plan(graph, macs=0.7, latency_ms=4.4, stopwatch=Slow())


def test_a_set_keeps_the_least_number_of_channels(graph):
    found = widths(graph, gp.plan(graph, macs=0.3, min_channels=3))
    assert all(width == 0 or width >= 3 for width in found.values())
    assert min(widths(graph, gp.plan(graph, macs=0.3)).values()) < 3


@pytest.mark.parametrize(
    ("policy", "problem"), [("threshold", "knows nothing of latency"), ("best", "must be auto or")]
)
def test_a_policy_that_cannot_is_refused_before_anything_is_measured(graph, monkeypatch, policy, problem):
    monkeypatch.setattr("graphprune.api.new_stopwatch", lambda *_, **__: pytest.fail("measures"))
    with pytest.raises(UsageError, match=problem):
        gp.plan(graph, speedup=2.0, policy=policy)


def test_a_file_with_free_sizes_is_measured_at_those_given(graph, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def watch(graph, target, *, shapes=None, seed=0):
        asked.append(shapes)
        yield Watch()

    monkeypatch.setattr(api, "new_stopwatch", watch)
    gp.plan(graph, macs=0.7, latency_ms=100.0, shapes={"x": (0, 3, 64, 64)})
    assert asked == [{"x": (0, 3, 64, 64)}]
    with pytest.raises(BudgetError, match="no channel of this network can be removed"):
        gp.plan(graph, speedup=2.0, freeze="*")
    assert len(asked) == 1

import json

import numpy as np
import pytest
import staircase

from graphprune.latency import LatencyTarget
from graphprune.latency import stopwatch as module
from graphprune.latency.stopwatch import TOLERANCE, Reached, Stopwatch
from graphprune.passes.errors import BudgetError, ModelLoadError, UsageError
from graphprune.widths import set_widths


class Fake(Stopwatch):
    """Measures what the model says, times a factor that the model does not know of."""

    factor = 1.15
    runs = 0

    def share(self, kept: np.ndarray) -> float:
        key = str(set_widths(self.graph, kept).tolist())
        if key not in self.measured:
            self.runs += 1
            self.measured[key] = self.factor * self.predicted(kept)
            self._note()
        return self.measured[key]

    def dense_ms(self) -> float:
        return 4.0


@pytest.fixture
def make(tmp_path, monkeypatch):
    graph, dense = staircase.graph(), staircase.export(tmp_path)
    model = staircase.staircase_model(graph, dense)
    monkeypatch.setattr(module, "latency_model", lambda *_, **__: model)
    return lambda **options: Fake(graph, dense, LatencyTarget(), **options)


def shrink(watch: Stopwatch, budget: float) -> np.ndarray:
    """Narrows the inner channels until the model says that the budget holds."""
    graph = watch.graph
    removed = ~graph.all_kept()
    for width in range(32, 0, -1):
        removed[graph.sets[1].groups[width:]] = True
        removed[graph.sets[2].groups[width:]] = True
        if watch.predicted(~removed) <= budget:
            return removed
    raise BudgetError("too little")


def test_a_budget_is_reached_as_measured_not_as_predicted(make):
    watch = make()
    reached = watch.reach(0.7, lambda budget: shrink(watch, budget))
    assert reached.share <= 0.7 * (1 + TOLERANCE)
    reached.require(0.7)
    assert reached.predicted == pytest.approx(reached.share / 1.15)
    assert watch.correction == pytest.approx(1 / 1.15)


def test_the_closest_is_taken_where_none_is_good_enough(make):
    watch = make()
    reached = watch.reach(0.2, lambda budget: shrink(watch, max(budget, 0.5)))
    with pytest.raises(BudgetError, match="speed-up of 5 was not reached"):
        reached.require(0.2)


def test_a_little_too_slow_is_within_the_tolerance_of_a_measurement():
    Reached(np.zeros(1, bool), 0.51, 0.5).require(0.5)


def test_what_was_measured_is_not_measured_again_after_a_stop(make, tmp_path):
    journal = tmp_path / "latency.json"
    first = make(journal=journal)
    reached = first.reach(0.7, lambda budget: shrink(first, budget))
    assert first.runs > 0
    second = make(journal=journal, resume=True)
    again = second.reach(0.7, lambda budget: shrink(second, budget))
    assert second.runs == 0
    assert np.array_equal(again.removed, reached.removed)
    assert json.loads(journal.read_text())["model"]["structure"] == "made up"


def test_measurements_are_noted_from_the_time_on_that_a_file_is_given(make, tmp_path):
    journal = tmp_path / "latency.json"
    watch = make()
    watch.reach(0.7, lambda budget: shrink(watch, budget))
    assert not journal.exists()
    watch.note_in(journal)
    assert json.loads(journal.read_text())["measured"] == watch.measured
    before = len(watch.measured)
    watch.reach(0.5, lambda budget: shrink(watch, budget))
    assert len(json.loads(journal.read_text())["measured"]) == len(watch.measured) > before


def test_resuming_asks_for_the_same_way_of_running(make, tmp_path):
    journal = tmp_path / "latency.json"
    make(journal=journal)
    with pytest.raises(UsageError, match="latency was measured with 1 threads at batch 1"):
        Stopwatch(staircase.graph(), tmp_path / "x", LatencyTarget(batch=4), journal=journal, resume=True)
    journal.write_text("{}")
    with pytest.raises(ModelLoadError, match="cannot be resumed"):
        make(journal=journal, resume=True)


def test_milliseconds_are_a_share_of_what_the_dense_network_takes(make):
    watch = make()
    assert watch.share_of(None, 1.0) == 0.25
    assert watch.share_of(2.0, 3.0) == 0.5
    assert watch.share_of(None, 5.0) == 1.25


def test_a_speed_up_beyond_reach_is_told_as_one(make):
    watch = make()
    with pytest.raises(BudgetError, match="a speed-up of 50 was not reached: too little"):
        watch.reach(0.02, lambda budget: shrink(watch, budget))


def test_latencies_of_another_machine_are_not_gone_on_with(make, tmp_path, monkeypatch):
    journal = tmp_path / "latency.json"
    watch = make(journal=journal)
    document = json.loads(journal.read_text())
    document["model"]["facts"] = {**watch.target.key(), "cpu": "another"}
    journal.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"measured on another machine \(cpu was another"):
        make(journal=journal, resume=True)


def test_a_real_cut_is_measured(tmp_path, monkeypatch):
    graph, dense = staircase.graph(), staircase.export(tmp_path)
    model = staircase.staircase_model(graph, dense)
    monkeypatch.setattr(module, "latency_model", lambda *_, **__: model)
    monkeypatch.setattr(module, "_SECONDS", 0.02)
    watch = Stopwatch(graph, dense, LatencyTarget())
    removed = ~graph.all_kept()
    removed[graph.sets[1].groups] = True  # a whole branch
    share = watch.share(~removed)
    assert share > 0
    assert watch.share(~removed) == share
    assert watch.dense_ms() > 0

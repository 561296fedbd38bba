import dataclasses
import json
import math

import pytest
import staircase

from graphprune.latency import LatencyModel, LatencyTarget, cache
from graphprune.latency.build import latency_model
from graphprune.passes.errors import ModelLoadError, UsageError


def test_times_of_segments_add_up(tmp_path):
    graph = staircase.graph()
    model = staircase.staircase_model(graph, staircase.export(tmp_path))
    assert model.share(graph, graph.all_kept()) == pytest.approx(1.0, rel=0.02)
    kept = graph.all_kept()
    kept[graph.sets[1].groups[16:]] = False
    assert model.share(graph, kept) < 0.95


def test_survives_json(tmp_path):
    graph = staircase.graph()
    model = staircase.staircase_model(graph, staircase.export(tmp_path))
    again = LatencyModel.from_dict(json.loads(json.dumps(model.to_dict())))
    kept = graph.all_kept()
    kept[graph.sets[1].groups[5:]] = False
    assert again.share(graph, kept) == model.share(graph, kept)
    assert again.to_dict() == model.to_dict()


def test_a_trend_is_told_apart_from_the_sum(tmp_path):
    graph = staircase.graph()
    plain = staircase.staircase_model(graph, staircase.export(tmp_path))
    model = dataclasses.replace(plain, trend=(0.1, 1.2))
    kept = graph.all_kept()
    kept[graph.sets[1].groups[5:]] = False
    share = model.share(graph, kept)
    assert share == pytest.approx(math.exp(0.1) * plain.share(graph, kept) ** 1.2)
    assert model.summed_share(share) == pytest.approx(plain.share(graph, kept))
    assert LatencyModel.from_dict(json.loads(json.dumps(model.to_dict()))).trend == (0.1, 1.2)


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelLoadError, match="malformed"):
        LatencyModel.from_dict({"schema": 2})
    with pytest.raises(ModelLoadError, match="schema 7"):
        LatencyModel.from_dict({"schema": 7})


def test_a_target_has_at_least_one_thread():
    with pytest.raises(UsageError, match="threads"):
        LatencyTarget(threads=0)


def test_cache_holds_one_model_for_each_way_of_running(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    model = staircase.staircase_model(staircase.graph(), staircase.export(tmp_path))
    assert cache.load("made up", LatencyTarget()) is None
    cache.store(model)
    found = cache.load("made up", LatencyTarget())
    assert found is not None
    assert found.to_dict() == model.to_dict()
    assert cache.load("made up", LatencyTarget(threads=2)) is None
    assert cache.load("another", LatencyTarget()) is None


def test_an_unreadable_cache_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    cache.store(staircase.staircase_model(staircase.graph(), staircase.export(tmp_path)))
    (file,) = (tmp_path / "cache" / "latency").iterdir()
    file.write_text("{")
    assert cache.load("made up", LatencyTarget()) is None


def test_the_users_cache_folder_is_respected(tmp_path, monkeypatch):
    monkeypatch.delenv("GRAPHPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "graphprune"
    monkeypatch.setenv("GRAPHPRUNE_CACHE", "")
    assert cache.cache_folder() is None


@pytest.fixture
def quickly(tmp_path, monkeypatch):
    """Models of few measurements, in a cache of their own, on a machine that says how busy it is."""
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("graphprune.latency.build._FITTED", 6)
    monkeypatch.setattr("graphprune.latency.build._CHECKED", 1)
    monkeypatch.setattr("graphprune.latency.build._SHARE_SECONDS", 0.02)
    monkeypatch.setattr("graphprune.latency.build._KERNEL_SECONDS", 0.01)

    def busy(share):
        monkeypatch.setattr("graphprune.latency.timing.Reference.interference", share)

    return busy


def test_what_a_busy_machine_says_is_not_kept(tmp_path, quickly, caplog):
    quickly(0.3)
    latency_model(staircase.graph(), staircase.export(tmp_path), LatencyTarget())
    assert "other work took 30 % of the processor" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_real_network_is_measured_once(tmp_path, quickly):
    quickly(None)
    dense = staircase.export(tmp_path)
    graph = staircase.graph()
    model = latency_model(graph, dense, LatencyTarget())
    assert model.dense_ms > 0
    assert len(model.errors) == 1
    # Every segment with channels was seen, at the lengths it has in the dense network among others.
    widths = [len(s.groups) for s in graph.sets]
    for segment in model.segments:
        lengths = tuple(axis.length(widths) for axis in segment.axes)
        assert lengths in {tuple(point) for point, _ in model.samples[segment.kind]}
        assert model.curves[segment.kind].at(lengths) >= 0
    again = latency_model(graph, dense, LatencyTarget())
    assert again.to_dict() == model.to_dict()

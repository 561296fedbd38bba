import dataclasses
import json

import numpy as np
import pytest
import staircase
import torch

import graphprune as gp
from graphprune import results
from graphprune.data import ImageSource, Preprocess
from graphprune.latency import stopwatch
from graphprune.passes.errors import BudgetError, MissedBudgetError, UsageError
from graphprune.widths import set_widths

SETTINGS = gp.CompressConfig(
    epochs=2, batch_size=16, flip=False, crop=False, precision="float32", threads=1, holdout=16, eval_every=1000
)


def images() -> ImageSource:
    pixels = np.random.default_rng(0).random((160, 8, 8, 3), dtype=np.float32)
    return ImageSource(pixels, Preprocess.of((8, 8), 3))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which the staircase is true, with a way to let the final measurement say something else."""
    graph = staircase.graph()
    model = staircase.staircase_model(graph, staircase.export(tmp_path))
    monkeypatch.setattr(stopwatch, "latency_model", lambda *_, **__: model)
    monkeypatch.setattr(stopwatch.Stopwatch, "dense_ms", lambda self: 4.0)
    measured = []

    def share(self, kept):
        measured.append(set_widths(self.graph, kept).tolist())
        return self.predicted(kept)

    monkeypatch.setattr(stopwatch.Stopwatch, "share", share)
    said = {"speedup": 2.0, "runs": 0}

    def benchmark(files, **options):
        said["runs"] += 1
        said["options"] = options
        report = gp.benchmark(files, **{**options, "min_seconds": 0.0, "min_rounds": 1, "max_seconds": 0.0})
        timings = [
            dataclasses.replace(t, speedup=said["speedup"], median_ms=4.0 / said["speedup"]) if at else t
            for at, t in enumerate(report.models)
        ]
        return dataclasses.replace(report, models=tuple(timings))

    monkeypatch.setattr(results, "benchmark", benchmark)
    return {"said": said, "measured": measured, "model": model, "graph": graph}


def compress(**options):
    return gp.compress(staircase.network(), images(), config=options.pop("config", SETTINGS), **options)


def test_the_allocation_of_the_end_has_the_latency_asked_for(machine, tmp_path):
    result = compress(speedup=2.0, output=tmp_path / "out")
    final = machine["measured"][-1]
    kept = {entry["set"]: entry["slim"] for entry in result.metrics["channels"]}
    assert list(kept.values()) == final  # what was measured last is what was made
    removed = machine["graph"].removed_by(result.plan)
    assert machine["model"].share(machine["graph"], ~removed) <= 0.5
    assert result.metrics["reached"] == {"speedup": 2.0}
    assert result.metrics["latency"]["target"] == {"threads": 1, "batch": 1, "provider": "CPUExecutionProvider"}
    assert json.loads((tmp_path / "out" / "latency.json").read_text())["model"]["structure"] == "made up"
    assert result.metrics["history"][-1]["latency"] <= 0.5


def test_threads_and_batch_are_those_of_the_benchmark(machine):
    result = compress(speedup=1.5, benchmark=gp.BenchmarkOptions(seconds=0.1, threads=2, batch=3))
    assert result.metrics["latency"]["target"]["batch"] == 3
    assert (machine["said"]["options"]["threads"], machine["said"]["options"]["batch"]) == (2, 3)


def test_a_miss_is_measured_twice_and_delivered_and_said(machine, tmp_path):
    machine["said"]["speedup"] = 1.8
    with pytest.raises(MissedBudgetError, match=r"slim.onnx is 1.80 times as fast as the dense file, not 2 times") as e:
        compress(speedup=2.0, output=tmp_path / "out")
    assert machine["said"]["runs"] == 2
    assert e.value.exit_code == 5
    assert e.value.result.metrics["reached"] == {"speedup": 1.8}
    assert (tmp_path / "out" / "slim.onnx").exists()
    assert (tmp_path / "out" / "metrics.json").exists()


def test_a_hair_too_slow_is_no_miss(machine):
    machine["said"]["speedup"] = 1.96
    assert compress(speedup=2.0).metrics["reached"]["speedup"] == 1.96


def test_milliseconds_and_multiply_accumulates_hold_together(machine):
    result = compress(latency_ms=3.0, macs=0.4)
    assert result.metrics["reached"]["macs"] <= 0.4 * 1.002
    assert result.metrics["reached"]["latency_ms"] == 2.0


def test_a_family_by_speed_has_its_speeds_in_its_names(machine):
    result = compress(speedup=(1.5, 2.0))
    assert list(result.family) == ["slim-speedup1.5", "slim-speedup2"]


def test_widths_of_a_counted_budget_lie_on_the_staircase(machine):
    result = compress(macs=0.5, config=dataclasses.replace(SETTINGS, align="auto"))
    assert all(entry["slim"] % 8 == 0 for entry in result.metrics["channels"])


def test_a_run_that_was_stopped_gets_to_the_same_result(machine, tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_steps=1)
    whole = compress(speedup=2.0, output=tmp_path / "whole", config=settings)

    class Stop:
        def stage(self, name):
            pass

        def images(self, done, total):
            pass

        def step(self, step, total, loss, cost, phase):
            if step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(speedup=2.0, output=tmp_path / "out", config=settings, reporter=Stop())
    again = compress(speedup=2.0, output=tmp_path / "out", config=settings, resume=True)
    assert again.plan.removed == whole.plan.removed
    a, b = (result.model.state_dict() for result in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_cannot_be_is_refused_before_the_training(machine):
    with pytest.raises(BudgetError, match="cannot be reached"):
        compress(speedup=5000.0)
    with pytest.raises(UsageError, match="give the benchmark some seconds"):
        compress(speedup=2.0, benchmark=gp.BenchmarkOptions(seconds=0))
    with pytest.raises(UsageError, match="--speedup must be above 1"):
        compress(speedup=0.5)


def test_engine_says_what_is_missing():
    from graphprune.engine import Engine

    graph = staircase.graph()
    config = dataclasses.replace(SETTINGS, speedup=2.0)
    with pytest.raises(UsageError, match=r"Engine\.use"):
        Engine(graph.front_end.module, graph, images(), config).run()


def test_plan_by_speed(machine):
    plan = gp.plan(machine["graph"], speedup=2.0)
    assert plan.meta["measured_speedup"] >= 2.0
    removed = machine["graph"].removed_by(plan)
    assert machine["model"].share(machine["graph"], ~removed) <= 0.5
    with pytest.raises(UsageError, match="speedup must be above 1"):
        gp.plan(machine["graph"], speedup=0.9)
    with pytest.raises(UsageError, match="for budgets"):
        gp.plan(machine["graph"], ratio=0.5, align="auto")

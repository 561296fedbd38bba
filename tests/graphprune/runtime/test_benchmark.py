import contextlib
import dataclasses
import json
import os
import sys
from functools import partial

import numpy as np
import onnx.parser
import pytest

from graphprune.errors import DataError, ModelLoadError, UnsupportedModelError, UsageError
from graphprune.runtime.benchmark import FASTER, NOT_FASTER, benchmark, benchmark_grid

# `graphprune.runtime.benchmark` is the function once the public name has been used.
module = sys.modules["graphprune.runtime.benchmark"]

QUICK = {"min_seconds": 0.001, "min_rounds": 4, "max_seconds": 5.0}


def net(dims="n,8", body="y = Relu(x)", kind="float"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> net ({kind}[{dims}] x) => ({kind}[{dims}] y) {{ {body} }}'
    return onnx.parser.parse_model(text).SerializeToString()


def timings(*milliseconds, spread=0.0, rounds=30, seed=0):
    """Summaries of made-up times: one model for each median, all with the same relative noise per round."""
    rng = np.random.default_rng(seed)
    contenders = []
    for at, median in enumerate(milliseconds):
        noise = 1 + spread * rng.standard_normal((rounds, 5))
        contender = module.Contender.__new__(module.Contender)
        contender.name, contender.times = f"m{at}", (median / 1e3 * noise).tolist()
        contenders.append(contender)
    return module._summarize(contenders, np.random.default_rng(1))


def test_every_model_is_timed_in_every_round():
    report = benchmark({"a": net(), "b": net()}, **QUICK, batch=3, seed=5)
    assert [timing.name for timing in report.models] == ["a", "b"]
    assert report.rounds >= 4
    assert all(timing.runs >= report.rounds for timing in report.models)
    assert all(0 < t.p10_ms <= t.median_ms <= t.p90_ms for t in report.models)
    assert (report.batch, report.threads, report.seed) == (3, 1, 5)
    assert report.inputs == {"x": (3, 8)}
    assert report["b"].verdict in {FASTER, NOT_FASTER}
    assert report.machine.onnxruntime
    with pytest.raises(KeyError):
        report["c"]


def test_the_report_is_json():
    plain = json.loads(json.dumps(benchmark({"a": net(), "b": net()}, **QUICK).to_dict(), allow_nan=False))
    assert plain["models"][1]["name"] == "b"
    assert len(plain["models"][1]["speedup_interval"]) == 2
    assert plain["inputs"] == {"x": [1, 8]}
    assert plain["machine"]["logical_cores"] >= 1


def test_rounds_end_with_the_time_even_if_too_few():
    assert benchmark({"a": net()}, min_seconds=1e9, min_rounds=10**9, max_seconds=0.0).rounds == 6


def test_the_order_of_turns_changes_and_every_round_is_complete(monkeypatch):
    turns = []
    monkeypatch.setattr(module.Contender, "warm_up", lambda self: None)
    take_turn = module.Contender.take_turn

    def spy(self):
        turns.append(self.name)
        take_turn(self)

    monkeypatch.setattr(module.Contender, "take_turn", spy)
    report = benchmark({"a": net(), "b": net(), "c": net()}, min_seconds=1e-9, min_rounds=12)
    rounds = [tuple(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert len(rounds) == report.rounds == 12
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_the_speedup_is_the_ratio_of_medians_to_the_first():
    first, second, third = timings(4.0, 2.0, 8.0)
    assert (first.speedup, first.verdict) == (1.0, "")
    assert second.speedup == pytest.approx(2.0)
    assert (second.verdict, third.verdict) == (FASTER, NOT_FASTER)
    assert third.speedup == pytest.approx(0.5)
    assert second.median_ms == pytest.approx(2.0)


def test_a_difference_within_the_noise_is_not_faster():
    _, same = timings(4.0, 3.996, spread=0.2, seed=3)
    low, high = same.speedup_interval
    assert low < 1 < high
    assert same.verdict == NOT_FASTER


def test_a_small_difference_beyond_the_noise_is_faster():
    _, better = timings(4.0, 3.9, spread=0.005, seed=3)
    low, high = better.speedup_interval
    assert 1 < low < 4 / 3.9 < high
    assert better.verdict == FASTER


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(module, "_RESAMPLES", 200)
    hits = 0
    for seed in range(100):
        low, high = timings(3.0, 2.0, spread=0.1, rounds=25, seed=seed)[1].speedup_interval
        hits += low <= 1.5 <= high
    assert 87 <= hits <= 99


def test_a_drift_that_meets_both_models_cancels():
    drift = np.linspace(1, 3, 40)[:, None] * np.ones((40, 3))
    contenders = []
    for name, median in (("a", 2.0), ("b", 1.0)):
        contender = module.Contender.__new__(module.Contender)
        contender.name, contender.times = name, (median * drift).tolist()
        contenders.append(contender)
    _, timing = module._summarize(contenders, np.random.default_rng(0))
    assert timing.speedup_interval == pytest.approx((2.0, 2.0))


def test_time_given_to_other_work_is_noticed(monkeypatch, caplog):
    clock = iter(range(10**6))
    monkeypatch.setattr(module.time, "thread_time", lambda: next(clock) * 1e-9)
    report = benchmark({"a": net()}, **QUICK)
    assert report.interference == pytest.approx(1, abs=0.01)
    assert report.is_disturbed
    assert "repeat the measurement on an idle machine" in caplog.text


@pytest.mark.parametrize(("found", "disturbed"), [(0.3, True), (0.01, False), (None, False)])
def test_other_work_is_noticed_with_several_threads_too(monkeypatch, caplog, found, disturbed):
    seen = []

    class Watch:
        def __init__(self, processors):
            seen.append(processors)

        def share(self):
            return found

    monkeypatch.setattr(module, "OtherWork", Watch)
    monkeypatch.setattr(module, "quietest", lambda count: None if count < 2 else (0,) * count)
    monkeypatch.setattr(module, "pinned", lambda processors: contextlib.nullcontext())
    monkeypatch.setattr(module.Contender, "open", partial(_open_anywhere, module.Contender.open))
    report = benchmark({"a": net()}, threads=2, **QUICK)
    assert (report.interference, report.is_disturbed, seen) == (found, disturbed, [(0, 0)])
    assert ("other work took 30 %" in caplog.text) is disturbed


def _open_anywhere(opened, name, source, threads, provider, processors=None):
    return opened(name, source, 1, provider)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 60.0), ({"min_seconds": 25.0}, 150.0), ({"min_seconds": 25.0, "max_seconds": 7.0}, 7.0)],
)
def test_a_long_measurement_is_not_cut_short(monkeypatch, options, expected):
    asked = []

    def measure(contenders, rng, min_seconds, min_rounds, max_seconds):
        asked.append(max_seconds)
        for contender in contenders:
            contender.take_turn()
        return 1

    monkeypatch.setattr(module, "_measure", measure)
    benchmark({"a": net(), "b": net()}, **options)
    assert asked == [expected]


def test_more_threads_than_processors_are_said(monkeypatch, caplog):
    few = dataclasses.replace(module.machine_facts(), logical_cores=1)
    monkeypatch.setattr(module, "machine_facts", lambda: few)
    benchmark({"a": net()}, **QUICK)
    assert "usable processor" not in caplog.text
    benchmark({"a": net()}, threads=2, **QUICK)
    assert "2 threads on 1 usable processor(s)" in caplog.text


@pytest.mark.parametrize("kind", ["float", "float16", "double", "int32", "int64", "uint8", "bool"])
def test_inputs_of_every_type_can_be_fed(kind):
    report = benchmark({"a": net(body="y = Identity(x)", kind=kind)}, **QUICK)
    assert report.models[0].runs > 0


def test_given_inputs_are_used():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,4] table, int64[k] index) => (float[k,4] y) { y = Gather(table, index) }"""
    model = onnx.parser.parse_model(text).SerializeToString()
    feeds = {"table": np.ones((9, 4), np.float32), "index": np.array([8, 7])}
    assert benchmark({"a": model}, inputs=feeds, **QUICK).inputs == {"table": (9, 4), "index": (2,)}
    with pytest.raises(UnsupportedModelError, match="a: onnxruntime cannot run it"):
        benchmark({"a": model}, inputs={**feeds, "index": np.array([99])}, **QUICK)
    with pytest.raises(DataError, match="no array was given for its input 'index'"):
        benchmark({"a": model}, inputs={"table": feeds["table"]}, **QUICK)
    with pytest.raises(UsageError, match="no file has an input 'tabel'; there is 'index', 'table'"):
        benchmark({"a": model}, inputs={**feeds, "tabel": feeds["table"]}, **QUICK)


def test_files_of_other_sizes_are_said_to_be(caplog):
    benchmark({"a": net("n,8"), "b": net("m,8")}, **QUICK)
    assert "reads" not in caplog.text
    benchmark({"a": net("n,8"), "b": net("n,9")}, **QUICK)
    assert "a reads 1x8 and b reads 1x9: their times differ for that as well" in caplog.text


def test_open_sizes_need_a_shape():
    model = net(dims="n,c,h")
    with pytest.raises(UsageError, match=r"its shape must be given, as in x:1x224x224") as caught:
        benchmark({"a": model}, **QUICK)
    assert "--" not in str(caught.value)  # not every command has the option
    assert benchmark({"a": model}, shapes={"": (2, 3, 4)}, **QUICK).inputs == {"x": (2, 3, 4)}


def test_a_fixed_batch_is_not_silently_another():
    with pytest.raises(UsageError, match="b: has a fixed batch of 8, 4 was asked for; give a batch of 8"):
        benchmark({"a": net(), "b": net(dims="8,8")}, batch=4, **QUICK)
    with pytest.raises(UsageError, match="a would run at a batch of 1 and b at one of 8"):
        benchmark({"a": net(), "b": net(dims="8,8")}, **QUICK)
    assert benchmark({"a": net(), "b": net(dims="8,8")}, batch=8, **QUICK).batch == 8
    assert benchmark({"b": net(dims="8,8")}, **QUICK).batch == 8
    with pytest.raises(UsageError, match="has a fixed batch of 8"):
        benchmark({"b": net(dims="8,8")}, batch=4, shapes={"x": (8, 8)}, **QUICK)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize(
    ("given", "batch"),
    [
        ({"shapes": {"x": (6, 8)}}, 6),
        ({"shapes": {"": (6, 8)}, "batch": 6}, 6),
        ({"shapes": {"x": (0, 8)}, "batch": 5}, 5),
        ({"shapes": {"x": (0, 8)}}, 1),
        ({"inputs": {"x": np.zeros((16, 8), np.float32)}}, 16),
    ],
)
def test_the_batch_that_is_measured_is_the_one_that_is_said(monkeypatch, mode, given, batch):
    streams = sys.modules["graphprune.runtime.contenders"]
    monkeypatch.setattr(streams, "_STREAM_TURN_SECONDS", 0.01)
    monkeypatch.setattr(streams, "_WARM_UP_SECONDS", 0.01)
    opened = []
    monkeypatch.setattr(module, "_summarize", lambda c, rng, samples: opened.append((c[0].batch, samples)) or ())
    report = benchmark({"a": net()}, mode=mode, **given, **QUICK)
    assert report.batch == report.inputs["x"][0] == batch
    assert opened == [(batch, batch if mode == "latency" else 1)]


def test_a_shape_for_another_batch_is_refused():
    message = r"a: the shape 1x8 of input 'x' is for a batch of 1, 16 was asked for; \?x8 leaves it open"
    with pytest.raises(UsageError, match=message):
        benchmark({"a": net()}, shapes={"x": (1, 8)}, batch=16, **QUICK)
    with pytest.raises(UsageError, match="a: its inputs hold a batch of 3, 2 was asked for"):
        benchmark({"a": net()}, inputs={"x": np.zeros((3, 8), np.float32)}, batch=2, **QUICK)


def test_a_grid_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(module, "benchmark", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(UsageError, match="is for a batch of 1, 16 was asked for"):
        benchmark_grid({"a": net()}, batches=(1, 16), shapes={"x": (1, 8)}, **QUICK)


def test_a_grid_of_batches_with_open_sizes():
    reports = benchmark_grid({"a": net(dims="n,c,h")}, batches=(1, 4), shapes={"x": (0, 3, 2)}, **QUICK)
    assert [(report.batch, report.inputs["x"]) for report in reports] == [(1, (1, 3, 2)), (4, (4, 3, 2))]


def test_wrong_arguments_are_usage_errors():
    with pytest.raises(UsageError, match="no model"):
        benchmark({})
    with pytest.raises(UsageError, match="a batch of 0"):
        benchmark({"a": net()}, batch=0)
    with pytest.raises(UsageError, match="0 threads"):
        benchmark({"a": net()}, threads=0)


def test_a_broken_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_text("no model")
    with pytest.raises(ModelLoadError, match=r"broken\.onnx: onnxruntime cannot load it"):
        benchmark({"a": net(), "b": path}, **QUICK)


def test_a_throughput_counts_the_samples_of_all_streams(monkeypatch):
    streams = sys.modules["graphprune.runtime.contenders"]
    monkeypatch.setattr(streams, "_STREAM_TURN_SECONDS", 0.01)
    monkeypatch.setattr(streams, "_WARM_UP_SECONDS", 0.01)
    report = benchmark({"a": net(), "b": net()}, mode="throughput", streams=2, batch=3, **QUICK)
    assert (report.mode, report.streams, report.batch) == ("throughput", 2, 3)
    assert report.rounds >= 6
    for timing in report.models:
        assert timing.runs >= 2 * report.rounds
        assert timing.samples_per_second == pytest.approx(1e3 / timing.median_ms)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (plain["mode"], plain["streams"]) == ("throughput", 2)


def test_the_rate_of_a_turn_is_the_sum_of_the_streams_own():
    contender = module.Streams.__new__(module.Streams)
    contender.times, contender.runs, contender.cpu_seconds, contender.wall_seconds = [], 0, 0.0, 0.0
    contender.batch = 4
    contender._serve = lambda seconds: [(10, 0.5, 0.5), (5, 0.5, 0.25)]  # 20 and 10 runs a second
    contender.take_turn()
    assert contender.times == [[pytest.approx(1 / 120)]]
    assert (contender.runs, contender.wall_seconds, contender.cpu_seconds) == (15, 1.0, 0.75)


def test_a_latency_says_how_many_samples_it_comes_to():
    report = benchmark({"a": net()}, batch=5, **QUICK)
    assert report.models[0].samples_per_second == pytest.approx(5e3 / report.models[0].median_ms)


def test_a_grid_has_every_combination_once():
    reports = benchmark_grid({"a": net()}, threads=(1, 2, 1), batches=(1, 3), **QUICK)
    assert [(report.threads, report.batch) for report in reports] == [(1, 1), (1, 3), (2, 1), (2, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "speed"}, "latency or throughput"),
        ({"streams": 2}, "streams"),
        ({"mode": "throughput", "streams": 0}, "0 streams"),
    ],
)
def test_modes_that_do_not_exist(wrong, message):
    with pytest.raises(UsageError, match=message):
        benchmark({"a": net()}, **QUICK, **wrong)


def test_threads_are_kept_in_place_and_let_go_afterwards(monkeypatch):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads cannot be kept in place here")
    before, seen = os.sched_getaffinity(0), []
    take_turn = module.Contender.take_turn

    def spy(self):
        seen.append(os.sched_getaffinity(0))
        take_turn(self)

    monkeypatch.setattr(module.Contender, "take_turn", spy)
    report = benchmark({"a": net()}, **QUICK)
    assert report.processors is not None
    assert all(found == {report.processors[0]} for found in seen)
    assert os.sched_getaffinity(0) == before
    seen.clear()
    assert benchmark({"a": net()}, pin=False, **QUICK).processors is None
    assert all(found == before for found in seen)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,4] table) => (float[k,4] y) <int64[1] at = {9}> { y = Gather(table, at) }"""
    outside = onnx.parser.parse_model(text).SerializeToString()
    with pytest.raises(UnsupportedModelError):
        benchmark({"a": outside}, **QUICK)
    assert os.sched_getaffinity(0) == before

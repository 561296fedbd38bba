import dataclasses
import io
import json

import onnx.parser
import pytest
from rich.console import Console

from graphprune.errors import DataError
from graphprune.report import summary as report
from graphprune.report.summary import (
    METRICS_SCHEMA,
    collect_metrics,
    render_benchmark,
    render_comparison,
    render_metrics,
)
from graphprune.runtime.benchmark import FASTER, NOT_FASTER, BenchmarkReport, ModelTiming
from graphprune.runtime.machine import machine_facts
from graphprune.verification.closeness import OutputComparison
from graphprune.verification.verify import Comparison

LONG = "a-model-with-a-name-that-is-much-longer-than-any-terminal-is-wide-" * 3


def timing(name, median, speedup=1.0, verdict=""):
    return ModelTiming(
        name, median, median * 0.9, median * 1.2, 100, speedup, (speedup * 0.98, speedup * 1.03), verdict
    )


def latencies(*timings):
    return BenchmarkReport(timings, 4, 2, "CPUExecutionProvider", 0, 25, {"x": (4, 3)}, machine_facts())


def net(width):
    values = ",".join(["1"] * (3 * width))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,3] x) => (float[n,{width}] y) <float[3,{width}] w = {{{values}}}> {{ y = MatMul(x, w) }}"""
    return onnx.parser.parse_model(text).SerializeToString()


def metrics(**options):
    return collect_metrics({"dense": net(8), "slim": net(4)}, **options)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (62_740_000, "62.7 M"),
        (4.1e9, "4.10 G"),
        (5e15, "5000 T"),
    ],
)
def test_counts_have_three_digits(value, text):
    assert report.count(value) == text


def test_sizes_are_decimal_units():
    assert [report.size(value) for value in (0, 512, 1000, 3_457_248)] == ["0 B", "512 B", "1.00 kB", "3.46 MB"]


def test_metrics_hold_cost_latency_and_quality():
    bench = latencies(timing("dense", 2.0), timing("slim", 1.0, 2.0, FASTER))
    found = metrics(benchmark=bench, agreement={"slim": 0.97}, accuracy={"dense": 0.9, "slim": 0.89})
    dense, slim = json.loads(json.dumps(found, allow_nan=False))["models"]
    assert found["schema"] == METRICS_SCHEMA
    assert (dense["macs"], slim["macs"], dense["params"], slim["params"]) == (24, 12, 24, 12)
    assert slim["latency_ms"] == {"median": 1.0, "p10": 0.9, "p90": 1.2}
    assert (slim["speedup"], slim["verdict"], slim["agreement"], dense["agreement"]) == (2.0, FASTER, 0.97, None)
    assert found["benchmark"]["threads"] == 2
    assert "models" not in found["benchmark"]


def test_the_table_shows_before_after_and_change():
    bench = latencies(timing("dense", 2.0), timing("slim", 1.25, 1.6, FASTER))
    text = render_metrics(metrics(benchmark=bench, agreement={"slim": 0.973}, accuracy={"dense": 0.9, "slim": 0.8812}))
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()[2:9]
    }
    assert rows["MACs"] == ["24", "12", "-50.0 %"]
    assert rows["parameters"] == ["24", "12", "-50.0 %"]
    assert rows["latency, median (p10 - p90)"] == ["2.00 ms (1.80 - 2.40)", "1.25 ms (1.12 - 1.50)", "-37.5 %"]
    assert rows["speed-up (95 % interval)"] == ["", "1.60x (1.57 - 1.65)", "faster"]
    assert rows["agreement with the dense model"] == ["", "97.30 %", ""]
    assert rows["accuracy"] == ["90.00 %", "88.12 %", "-1.88 points"]
    assert "batch of 4, 2 threads, CPU, 25 interleaved rounds" in text
    assert machine_facts().cpu in text


def test_not_faster_is_said_plainly():
    bench = latencies(timing("dense", 2.0), timing("slim", 2.1, 0.95, NOT_FASTER))
    assert "not faster on this machine" in render_metrics(metrics(benchmark=bench))
    assert "not faster on this machine" in render_benchmark(bench)


@pytest.mark.parametrize(("interference", "said"), [(None, False), (0.01, False), (0.4, True)])
def test_a_busy_machine_is_said_beside_its_numbers(interference, said):
    bench = dataclasses.replace(latencies(timing("dense", 2.0), timing("slim", 1.0)), interference=interference)
    assert bench.is_disturbed is said
    for text in (render_benchmark(bench), render_metrics(metrics(benchmark=bench))):
        assert ("NOT AN IDLE MACHINE: other work took 40% of the processor" in text) is said


def test_what_is_not_known_has_no_row():
    text = render_metrics(metrics())
    assert "MACs" in text
    assert not any(word in text for word in ("latency", "accuracy", "agreement", "speed-up", "None"))


def test_a_family_has_a_column_each_and_its_verdicts():
    bench = latencies(timing("dense", 2.0), timing("mid", 1.5, 1.3, FASTER), timing("slim", 1.9, 1.0, NOT_FASTER))
    found = collect_metrics({"dense": net(8), "mid": net(6), "slim": net(4)}, benchmark=bench)
    text = render_metrics(found)
    assert text.splitlines()[0].split("|")[2:-1] != []
    assert [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]] == ["", "dense", "mid", "slim"]
    assert "mid: faster" in text
    assert "slim: not faster on this machine" in text


def test_what_the_macs_leave_out_is_said():
    found = metrics()
    found["models"][1]["uncounted"] = [f"LSTM 'l{i}': no formula" for i in range(5)]
    assert "not in the MACs of slim: LSTM 'l0': no formula; " in render_metrics(found)
    assert "and 2 more" in render_metrics(found)


def test_plain_text_is_not_cut_wrapped_or_colored(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = render_benchmark(latencies(timing("dense", 2.0), timing(LONG, 1.0, 2.0, FASTER)))
    assert LONG in text
    assert "\x1b" not in text
    assert text.isascii()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 4


def test_a_console_gets_the_same_content():
    stream = io.StringIO()
    text = render_metrics(metrics(), Console(file=stream, width=200))
    assert "24" in stream.getvalue()
    assert all(cell in stream.getvalue() for cell in ("MACs", "dense", "-50.0 %"))
    assert "MACs" in text


def test_metrics_of_another_version_are_refused():
    with pytest.raises(DataError, match="schema 99, this version reads 1"):
        render_metrics({"schema": 99, "models": []})


def test_nearly_all_is_not_all():
    assert "99.99 %" in render_metrics(metrics(agreement={"slim": 0.999999}))
    assert "100.00 %" in render_metrics(metrics(agreement={"slim": 1.0}))


def test_without_classes_the_distance_is_told():
    text = render_metrics(metrics(distance={"slim": 0.01234}))
    assert [line for line in text.splitlines() if "distance from the dense model" in line and "1.23 % of its" in line]
    assert "agreement" not in text


def test_a_comparison_shows_errors_and_problems():
    good = OutputComparison("scores", 1e-6, 12.5, 8e-8, True, "", 0)
    bad = OutputComparison("boxes", float("inf"), 0.0, float("inf"), False, "holds NaN or infinity in the candidate", 3)
    text = render_comparison(Comparison((good, bad), 0.75, 64, 1e-4, 1e-6))
    assert "scores" in text
    assert "1.00e-06" in text
    assert "8.0e-08" in text
    assert "DIFFERENT" in text
    assert "holds NaN or infinity in the candidate" in text
    assert "64 samples" in text
    assert "75.00 %" in text

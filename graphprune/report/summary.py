"""The numbers of a run as a dictionary with a version, and as a table to read.

A metrics dictionary holds one entry for each model, the dense one first:

    {"schema": 1,
     "models": [{"name": "dense", "macs": ..., "params": ..., "size_bytes": ..., "uncounted": [...],
                 "latency_ms": {"median": ..., "p10": ..., "p90": ...} or null,
                 "speedup": ..., "speedup_interval": [low, high], "verdict": ...,
                 "agreement": share or null, "distance": share of the dense model's variance or null,
                 "same_paths": share or null, "metric": the user's own or null, "accuracy": share or null}, ...],
     "benchmark": {"batch": ..., "threads": ..., "provider": ..., "rounds": ..., "machine": {...}} or null}

Other keys may stand beside these and are left alone. Tables are plain text when they go into a file or a pipe:
no color, no cell cut short.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from graphprune.passes.errors import DataError
from graphprune.report.tables import milliseconds, new_table, rendered, three_digits, times
from graphprune.runtime.benchmark import BUSY, BenchmarkReport
from graphprune.runtime.onnx_session import OnnxSource
from graphprune.verification.closeness import OutputComparison
from graphprune.verification.verify import Comparison

__all__ = [
    "METRICS_SCHEMA",
    "collect_metrics",
    "describe_int8",
    "render_benchmark",
    "render_benchmarks",
    "render_comparison",
    "render_metrics",
    "some_of",
]

METRICS_SCHEMA = 1
"""Version of metrics.json: the field `schema`.

A further field that a reader can do without changes nothing. For anything else: raise the number by one; let
`render_metrics` read both numbers, since results are compared over years; keep metrics of the old number under
`tests/old_files/`, in the folder of the version that wrote them, and render them in `tests/test_old_files.py`; say in
docs/stability.md from which version on the new one is written.
"""

Metrics = Mapping[str, Any]
_BLANK = ""
_VERDICTS = {
    (True, True): "equal",
    (True, False): "not compared",
    (False, True): "DIFFERENT",
    (False, False): "NOT COMPARED",
}


def collect_metrics(
    models: Mapping[str, OnnxSource],
    *,
    benchmark: BenchmarkReport | None = None,
    agreement: Mapping[str, float] | None = None,
    accuracy: Mapping[str, float] | None = None,
    distance: Mapping[str, float] | None = None,
    paths: Mapping[str, float] | None = None,
    own: Mapping[str, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of ONNX models, the dense one first; cost is counted here, the rest is handed in by name."""
    from graphprune.formats.onnx_cost import onnx_cost  # the analysis, which tables need not

    entries = []
    for name, source in models.items():
        entry: dict[str, Any] = {"name": name, **onnx_cost(source, shapes=shapes).to_dict(), "latency_ms": None}
        if benchmark is not None:
            timing = benchmark[name]
            entry["latency_ms"] = {"median": timing.median_ms, "p10": timing.p10_ms, "p90": timing.p90_ms}
            entry["speedup"] = timing.speedup
            entry["speedup_interval"] = list(timing.speedup_interval)
            entry["verdict"] = timing.verdict
        entry["agreement"] = (agreement or {}).get(name)
        entry["distance"] = (distance or {}).get(name)
        entry["same_paths"] = (paths or {}).get(name)
        entry["metric"] = (own or {}).get(name)
        entry["accuracy"] = (accuracy or {}).get(name)
        entries.append(entry)
    conditions = None
    if benchmark is not None:
        conditions = {key: value for key, value in benchmark.to_dict().items() if key != "models"}
    return {"schema": METRICS_SCHEMA, "models": entries, "benchmark": conditions}


def render_metrics(metrics: Metrics, console: Console | None = None) -> str:
    """Return the before/after table as text; with a console, print it there as well, in its colors.

    Raises:
        DataError: The metrics were written by another version of this format.
    """
    if metrics.get("schema") != METRICS_SCHEMA:
        raise DataError(f"metrics have schema {metrics.get('schema')}, this version reads {METRICS_SCHEMA}")
    models = metrics["models"]
    before, after = models[0], models[-1]
    has_change = len(models) == 2
    table = new_table(["", *(model["name"] for model in models), *(["change"] if has_change else [])])
    for name, cell, change in _ROWS:
        cells = [cell(model) for model in models]
        if any(cells):
            label = name if before["name"] == "dense" else name.replace("the dense model", before["name"])
            table.add_row(label, *cells, *([change(before, after)] if has_change else []))
    return rendered(table, _metrics_notes(metrics), console)


def render_benchmark(report: BenchmarkReport, console: Console | None = None) -> str:
    """Return the latencies as a table; with a console, print it there as well."""
    return render_benchmarks([report], console)


def render_benchmarks(reports: Sequence[BenchmarkReport], console: Console | None = None) -> str:
    """Return measurements under several conditions as one table; with a console, print it there as well."""
    first = reports[0]
    is_rate = first.mode == "throughput"
    varied = [key for key in ("batch", "threads") if len({getattr(report, key) for report in reports}) > 1]
    measured = ["samples/s"] if is_rate else ["median", "p10", "p90"]
    table = new_table(["model", *varied, *measured, "runs", "speed-up", "95 % interval", ""])
    for report in reports:
        conditions = [str(getattr(report, key)) for key in varied]
        for at, timing in enumerate(report.models):
            low, high = timing.speedup_interval
            ratio = (times(timing.speedup), f"{times(low)} - {times(high)}") if at else (_BLANK, _BLANK)
            latencies = [milliseconds(value) for value in (timing.median_ms, timing.p10_ms, timing.p90_ms)]
            cells = [three_digits(timing.samples_per_second)] if is_rate else latencies
            table.add_row(timing.name, *conditions, *cells, str(timing.runs), *ratio, timing.verdict)
    return rendered(table, list(dict.fromkeys(_conditions(report.to_dict()) for report in reports)), console)


def render_comparison(comparison: Comparison, console: Console | None = None) -> str:
    """Return the errors of a comparison as a table; with a console, print it there as well."""
    table = new_table(["output", "largest difference", "scale", "error", "tolerated", ""])
    for output in (*comparison.inside, *comparison.outputs):
        place = f" [{output.place}]" if output.place else ""
        cells = (*_errors(output), f"{comparison.rtol:.1e}", _VERDICTS[output.passes, output.compared])
        table.add_row(f"{output.name}{place}", *cells)
    notes = [f"{comparison.samples} samples; error = largest difference / largest absolute value of its place"]
    if comparison.agreement is not None:
        notes.append(f"agreement (same largest class): {_percent(comparison.agreement)}")
    if any(output.proven for output in comparison.outputs):
        notes.append(
            "not compared: nothing is found in these inputs; equal are the numbers that enter the selection, and what "
            "the selection makes of random ones"
        )
    if comparison.turned_over:
        notes.append(
            "a selection turns over for rounding alone: both make the same of the same numbers, and these are equal"
        )
    return rendered(table, notes, console)


def count(value: float) -> str:
    """Return a number in at most four characters and its unit: 125 M, 62.7 M, 855 k.

    Example:
        >>> count(62_740_000)
        '62.7 M'
    """
    return _scaled(value, ("", "k", "M", "G", "T")).strip()


def size(value: float) -> str:
    """Return a number of bytes in decimal units: 3.43 MB."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    step = 0
    # 999.5 would print as 1000 with three digits.
    while abs(value) >= 999.5 and step + 1 < len(units):
        value /= 1000
        step += 1
    return f"{int(value)} {units[0]}" if step == 0 and value == int(value) else f"{three_digits(value)} {units[step]}"


def _percent(share: float) -> str:
    # Rounding must not turn "nearly all" into "all".
    rounded = round(share * 100, 2)
    return f"{min(rounded, 99.99) if share < 1 else 100:.2f} %"


def _distance(share: float) -> str:
    return f"{three_digits(100 * share)} % of its variance"


def _relative_change(key: str) -> Any:
    def change(before: Metrics, after: Metrics) -> str:
        if not before.get(key) or after.get(key) is None:
            return _BLANK
        return f"{(after[key] / before[key] - 1) * 100:+.1f} %"

    return change


def _latency(model: Metrics) -> str:
    latency = model.get("latency_ms")
    if not latency:
        return _BLANK
    low, high = (milliseconds(latency[key]).removesuffix(" ms") for key in ("p10", "p90"))
    return f"{milliseconds(latency['median'])} ({low} - {high})"


def _latency_change(before: Metrics, after: Metrics) -> str:
    if not before.get("latency_ms") or not after.get("latency_ms"):
        return _BLANK
    return f"{(after['latency_ms']['median'] / before['latency_ms']['median'] - 1) * 100:+.1f} %"


def _speedup(model: Metrics) -> str:
    if not model.get("verdict"):
        return _BLANK
    low, high = model["speedup_interval"]
    return f"{times(model['speedup'])} ({low:.2f} - {high:.2f})"


def _accuracy_change(before: Metrics, after: Metrics) -> str:
    if before.get("accuracy") is None or after.get("accuracy") is None:
        return _BLANK
    return f"{(after['accuracy'] - before['accuracy']) * 100:+.2f} points"


def _optional(key: str, text: Any) -> Any:
    return lambda model: _BLANK if model.get(key) is None else text(model[key])


# Label, cell of a model, change from the first to the last of two models.
_ROWS: tuple[tuple[str, Any, Any], ...] = (
    ("MACs", _optional("macs", count), _relative_change("macs")),
    ("parameters", _optional("params", count), _relative_change("params")),
    ("file size", _optional("size_bytes", size), _relative_change("size_bytes")),
    ("latency, median (p10 - p90)", _latency, _latency_change),
    ("speed-up (95 % interval)", _speedup, lambda before, after: after.get("verdict") or _BLANK),
    ("agreement with the dense model", _optional("agreement", _percent), lambda before, after: _BLANK),
    ("sequences read as by the dense model", _optional("same_paths", _percent), lambda before, after: _BLANK),
    ("own metric", _optional("metric", three_digits), lambda before, after: _BLANK),
    ("distance from the dense model", _optional("distance", _distance), lambda before, after: _BLANK),
    ("accuracy", _optional("accuracy", _percent), _accuracy_change),
)


def _metrics_notes(metrics: Metrics) -> list[str]:
    notes = []
    if metrics.get("benchmark"):
        notes.append(_conditions(metrics["benchmark"]))
    for model in metrics["models"]:
        if missing := model.get("uncounted"):
            notes.append(f"not in the MACs of {model['name']}: {some_of(missing)}")
        if len(metrics["models"]) > 2 and model.get("verdict"):
            notes.append(f"{model['name']}: {model['verdict']}")
    notes += [describe_int8(fact) for fact in metrics.get("int8", ())]
    notes += [f"NOT MADE: {problem}" for problem in metrics.get("int8_missing", {}).values()]
    notes += [_describe_sparse(name, fact) for name, fact in metrics.get("sparse_weights", {}).items()]
    return notes + _reconstructions(metrics)


def _reconstructions(metrics: Metrics) -> list[str]:
    """What was fitted in closed form, and what became of that, in one line for each slim model."""
    fact, notes = metrics.get("reconstruction") or {}, []
    for member in (metrics.get("members") or [metrics]) if fact.get("text") else ():
        parts = [f"{fact['text'][str(member['student'])]}, to {fact['images']} images"]
        if start := member.get("start"):
            if start["agreement"] is not None:
                parts.append(f"agreement {_percent(start['agreement'])} on {metrics['data']['held_out']} held out")
            harmed = "TRAINING MADE IT WORSE THERE: delivered as it was fitted"
            parts.append(harmed if start["is_delivered"] else "then trained")
        notes.append(f"{member.get('name', 'slim')}: {'; '.join(parts)}")
    return notes


def some_of(facts: Sequence[str]) -> str:
    """The first three of several facts in one line, and how many there are besides."""
    more = f" and {len(facts) - 3} more" if len(facts) > 3 else ""
    return "; ".join(facts[:3]) + more


def _describe_sparse(name: str, fact: Metrics) -> str:
    """What is left of the weights of linear layers, and what that means for the file, in one line."""
    layers, stored = fact["layers"].values(), fact["stored"]
    left, every = (sum(layer[key] for layer in layers) for key in ("left", "weights"))
    how = "stored dense, which is as small" if not stored["problem"] else f"stored dense: {stored['problem']}"
    if stored["sparse"]:
        how = f"stored sparse: {size(stored['bytes'])} instead of {size(stored['bytes_dense'])}"
    return f"{name}: {left} of {every} weights of linear layers are not zero; {how}"


def describe_int8(fact: Metrics) -> str:
    """What an int8 file is and what it has brought beside its float one, in one line."""
    floats, layers = len(fact["float_layers"]), fact["layers"]
    kept = "all layers in int8" if not floats else f"{layers - floats} of {layers} layers in int8"
    parts = [f"{kept}, {fact['scheme_text']}"]
    images = f"{fact['search_images']} images"
    if fact["agreement"] is not None:
        missed = "" if fact["reached"] else " (LESS THAN ASKED FOR)"
        seen = images if fact["agreement_unit"] == "images" else f"the {fact['agreement_unit']} of {images}"
        parts.append(f"gives {fact['of']}'s answer on {_percent(fact['agreement'])} of {seen}{missed}")
    else:
        missed = "" if fact["reached"] else " (MORE THAN ASKED FOR)"
        worst = f" (worst: {fact['worst']})" if fact.get("worst") else ""
        error = f"{100 * fact['distance']:.2f} % of {fact['of']}'s variance"
        parts.append(f"the squared error of its outputs is {error} on {images}{worst}{missed}")
    if unable := [f"'{name}' {reason}" for name, reason in fact.get("unable", {}).items()]:
        parts.append(f"in float32 whatever the agreement: {some_of(unable)}")
    parts += [f"the end stays in float32: {reason}" for reason in fact.get("float_end", ())]
    parts += fact.get("not_compared", ())
    if fact.get("speedup"):
        low, high = fact["speedup_interval"]
        parts.append(f"{times(fact['speedup'])} ({low:.2f} - {high:.2f}) of its speed: {fact['verdict']}")
    return f"{fact['name']}: {'; '.join(parts)}"


def _conditions(benchmark: Metrics) -> str:
    """What was measured, how and on what, in one line."""
    machine = benchmark["machine"]
    waited = benchmark.get("interference") or 0.0
    busy = f"; NOT AN IDLE MACHINE: other work took {waited:.0%} of the processor, repeat this" if waited > BUSY else ""
    mode, streams = benchmark.get("mode", "latency"), benchmark.get("streams", 1)
    processors = benchmark.get("processors")
    parts = [
        f"{mode} of a batch of {benchmark['batch']}",
        *([_some(streams, "stream")] if mode == "throughput" else []),
        _some(benchmark["threads"], "thread") + (" each" if streams > 1 else ""),
        *([f"kept on {_numbered(processors)}"] if processors else []),
        benchmark["provider"].removesuffix("ExecutionProvider"),
        f"{benchmark['rounds']} interleaved rounds",
    ]
    return (
        f"{', '.join(parts)}; {machine['cpu']} ({machine['instruction_set']}), "
        f"onnxruntime {machine['onnxruntime']}{busy}"
    )


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _numbered(processors: Sequence[int]) -> str:
    numbers = ", ".join(map(str, sorted(processors)))
    return f"processor{'s' if len(processors) > 1 else ''} {numbers}"


def _errors(output: OutputComparison) -> tuple[str, str, str]:
    if not output.compared:
        return "-", "-", output.problem.partition(" on the ")[0]
    if output.problem:
        return "-", "-", output.problem
    return f"{output.max_difference:.2e}", f"{output.scale:.3g}", f"{output.error:.1e}"

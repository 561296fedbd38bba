"""The numbers of a run as a dictionary with a version, and as a table to read.

A metrics dictionary holds one entry for each model, the dense one first:

    {"schema": 1,
     "models": [{"name": "dense", "macs": ..., "params": ..., "size_bytes": ..., "uncounted": [...],
                 "latency_ms": {"median": ..., "p10": ..., "p90": ...} or null,
                 "speedup": ..., "speedup_interval": [low, high], "verdict": ...,
                 "agreement": share or null, "accuracy": share or null}, ...],
     "benchmark": {"batch": ..., "threads": ..., "provider": ..., "rounds": ..., "machine": {...}} or null}

Other keys may stand beside these and are left alone. Tables are plain text when they go into a file or a pipe:
no color, no cell cut short.
"""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from graphprune.benchmark import BUSY, BenchmarkReport
from graphprune.closeness import OutputComparison
from graphprune.onnx_cost import onnx_cost
from graphprune.onnx_session import OnnxSource
from graphprune.passes.errors import DataError
from graphprune.verify import Comparison

__all__ = [
    "METRICS_SCHEMA",
    "collect_metrics",
    "describe_int8",
    "render_benchmark",
    "render_comparison",
    "render_metrics",
]

METRICS_SCHEMA = 1

Metrics = Mapping[str, Any]
_BLANK = ""


def collect_metrics(
    models: Mapping[str, OnnxSource],
    *,
    benchmark: BenchmarkReport | None = None,
    agreement: Mapping[str, float] | None = None,
    accuracy: Mapping[str, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of ONNX models, the dense one first; cost is counted here, the rest is handed in by name."""
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
    table = _table(["", *(model["name"] for model in models), *(["change"] if has_change else [])])
    for name, cell, change in _ROWS:
        cells = [cell(model) for model in models]
        if any(cells):
            label = name if before["name"] == "dense" else name.replace("the dense model", before["name"])
            table.add_row(label, *cells, *([change(before, after)] if has_change else []))
    return _render(table, _metrics_notes(metrics), console)


def render_benchmark(report: BenchmarkReport, console: Console | None = None) -> str:
    """Return the latencies as a table; with a console, print it there as well."""
    table = _table(["model", "median", "p10", "p90", "runs", "speed-up", "95 % interval", ""])
    for at, timing in enumerate(report.models):
        low, high = timing.speedup_interval
        ratio = (_times(timing.speedup), f"{_times(low)} - {_times(high)}") if at else (_BLANK, _BLANK)
        times = (_milliseconds(value) for value in (timing.median_ms, timing.p10_ms, timing.p90_ms))
        table.add_row(timing.name, *times, str(timing.runs), *ratio, timing.verdict)
    return _render(table, [_conditions(report.to_dict())], console)


def render_comparison(comparison: Comparison, console: Console | None = None) -> str:
    """Return the errors of a comparison as a table; with a console, print it there as well."""
    table = _table(["output", "largest difference", "scale", "error", "tolerated", ""])
    for output in comparison.outputs:
        table.add_row(output.name, *_errors(output), f"{comparison.rtol:.1e}", "equal" if output.equal else "DIFFERENT")
    notes = [f"{comparison.samples} samples; error = largest difference / largest absolute value of the output"]
    if comparison.agreement is not None:
        notes.append(f"agreement (same largest class): {_percent(comparison.agreement)}")
    return _render(table, notes, console)


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
    return f"{int(value)} {units[0]}" if step == 0 and value == int(value) else f"{_three_digits(value)} {units[step]}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 99.95 else f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 1 else f"{_three_digits(value)} ms"


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _percent(share: float) -> str:
    # Rounding must not turn "nearly all" into "all".
    rounded = round(share * 100, 2)
    return f"{min(rounded, 99.99) if share < 1 else 100:.2f} %"


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
    low, high = (_milliseconds(latency[key]).removesuffix(" ms") for key in ("p10", "p90"))
    return f"{_milliseconds(latency['median'])} ({low} - {high})"


def _latency_change(before: Metrics, after: Metrics) -> str:
    if not before.get("latency_ms") or not after.get("latency_ms"):
        return _BLANK
    return f"{(after['latency_ms']['median'] / before['latency_ms']['median'] - 1) * 100:+.1f} %"


def _speedup(model: Metrics) -> str:
    if not model.get("verdict"):
        return _BLANK
    low, high = model["speedup_interval"]
    return f"{_times(model['speedup'])} ({low:.2f} - {high:.2f})"


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
    ("accuracy", _optional("accuracy", _percent), _accuracy_change),
)


def _metrics_notes(metrics: Metrics) -> list[str]:
    notes = []
    if metrics.get("benchmark"):
        notes.append(_conditions(metrics["benchmark"]))
    for model in metrics["models"]:
        if missing := model.get("uncounted"):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            notes.append(f"not in the MACs of {model['name']}: {'; '.join(missing[:3])}{more}")
        if len(metrics["models"]) > 2 and model.get("verdict"):
            notes.append(f"{model['name']}: {model['verdict']}")
    notes += [describe_int8(fact) for fact in metrics.get("int8", ())]
    return notes


def describe_int8(fact: Metrics) -> str:
    """What an int8 file is and what it has brought beside its float one, in one line."""
    floats, layers = len(fact["float_layers"]), fact["layers"]
    kept = "all layers in int8" if not floats else f"{layers - floats} of {layers} layers in int8"
    parts = [f"{kept}, {fact['scheme_text']}"]
    if fact["agreement"] is not None:
        missed = "" if fact["reached"] else " (LESS THAN ASKED FOR)"
        images = f"{fact['search_images']} images"
        parts.append(f"gives {fact['of']}'s answer on {_percent(fact['agreement'])} of {images}{missed}")
    if fact.get("speedup"):
        low, high = fact["speedup_interval"]
        parts.append(f"{_times(fact['speedup'])} ({low:.2f} - {high:.2f}) of its speed: {fact['verdict']}")
    return f"{fact['name']}: {'; '.join(parts)}"


def _conditions(benchmark: Metrics) -> str:
    """What the latencies were measured on, in one line."""
    machine = benchmark["machine"]
    threads = benchmark["threads"]
    waited = benchmark.get("interference") or 0.0
    busy = f"; NOT AN IDLE MACHINE: other work took {waited:.0%} of the processor, repeat this" if waited > BUSY else ""
    return (
        f"latency of a batch of {benchmark['batch']}, {threads} thread{'s' if threads > 1 else ''}, "
        f"{benchmark['provider'].removesuffix('ExecutionProvider')}, {benchmark['rounds']} interleaved rounds; "
        f"{machine['cpu']} ({machine['instruction_set']}), onnxruntime {machine['onnxruntime']}{busy}"
    )


def _errors(output: OutputComparison) -> tuple[str, str, str]:
    if output.problem:
        return "-", "-", output.problem
    return f"{output.max_difference:.2e}", f"{output.scale:.3g}", f"{output.error:.1e}"


def _table(headers: Sequence[str]) -> Table:
    table = Table(box=box.MARKDOWN, show_edge=True, pad_edge=True)
    for at, header in enumerate(headers):
        is_verdict = at == len(headers) - 1 and not header
        table.add_column(header, justify="left" if at == 0 or is_verdict else "right", overflow="fold")
    return table


def _render(table: Table, notes: Sequence[str], console: Console | None) -> str:
    if console is not None:
        console.print(table)
        for note in notes:
            console.print(note, style="dim", highlight=False, markup=False)
    # As wide as the content asks for: a pipe has no width that would justify a cut.
    plain = Console(file=StringIO(), width=10_000, color_system=None, force_terminal=False)
    with plain.capture() as captured:
        plain.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

"""The report's part beside torch-pruning: success, time and memory of both tools."""

import statistics
from collections.abc import Iterable, Sequence

from process import Row
from wording import cell, why

#: Where the cost of a tool shows, and not that of starting it.
LARGE = 10e6


def peers(rows: Sequence[Row]) -> str:
    """Success, time and memory of both tools."""
    rows = [row for row in rows if row["status"] != "too big"]
    lines = ["| success: runs, and the output keeps its shape | GraphPrune | torch-pruning |", "|---|---|---|"]
    for suite in ("torchvision", "timm"):
        of = [row for row in rows if row["suite"] == suite]
        if of:
            works = [sum(row[tool]["status"] == "works" for row in of) for tool in ("ours", "theirs")]
            lines.append(f"| {suite}, {len(of)} models | {works[0]} | {works[1]} |")
    timed = [row for row in rows if row.get("times", {}).get("status") == "done"]
    parts = ["\n".join(lines), times(timed), memory(rows), failures(rows)]
    return "\n\n".join(part for part in parts if part)


def times(rows: Sequence[Row]) -> str:
    """Processor seconds of one tool over those of the other, model by model."""
    if not rows:
        return ""
    large = [row for row in rows if row["parameters"] > LARGE]
    lines = [
        "Processor seconds of GraphPrune over those of torch-pruning, in turns in one process; median over models "
        "[10th and 90th percentile]. Below 1 GraphPrune is faster. *Trace* finds the coupled groups; what only plans "
        "and reports need (sets, flow of values, costs) is read when it is first asked for and counted with *plan*, "
        "as torch-pruning collects its groups when it prunes.",
        "",
        f"| | all {len(rows)} | {len(large)} above {LARGE / 1e6:g} M parameters |",
        "|---|---|---|",
    ]
    for label, ours, theirs in (
        ("trace / build the graph", ("trace",), "build_graph"),
        ("capture + trace / build the graph", ("capture", "trace"), "build_graph"),
        ("trace + plan + slim / build + prune", ("trace", "plan", "slim"), "build_and_prune"),
        ("the same with our verification", ("trace", "plan", "slim", "verify"), "build_and_prune"),
        (
            "the same with capture and verification",
            ("capture", "trace", "plan", "slim", "verify"),
            "build_and_prune",
        ),
    ):
        cells = [_spread(_ratio(row, ours, theirs) for row in part) for part in (rows, large)]
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _ratio(row: Row, ours: Sequence[str], theirs: str) -> float:
    cpu = row["times"]["ours"]["cpu"]
    return sum(cpu[stage] for stage in ours) / max(row["times"]["theirs"]["cpu"][theirs], 1e-4)


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return ""
    tenth = ordered[int(0.1 * (len(ordered) - 1))], ordered[round(0.9 * (len(ordered) - 1))]
    return f"{statistics.median(ordered):.2f} [{tenth[0]:.2f}, {tenth[1]:.2f}]"


def memory(rows: Sequence[Row]) -> str:
    """Peak over what a process holds before the model is made, relative to the model."""
    lines = [
        "Peak of resident memory above what the process held before it made the model, over the size of the model "
        "(which is part of it); each tool in a process of its own.",
        "",
        "| models | GraphPrune | torch-pruning |",
        "|---|---|---|",
    ]
    parts = (("all where both work", 0.0), (f"above {LARGE / 1e6:g} M parameters", LARGE))
    for label, least in parts:
        of = [row for row in rows if row["status"] == "ours+theirs" and row["parameters"] > least]
        cells = [
            _spread(row[tool]["memory_mb"]["peak"] / row[tool]["memory_mb"]["model"] for row in of)
            for tool in ("ours", "theirs")
        ]
        lines.append(f"| {label}, {len(of)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def failures(rows: Sequence[Row]) -> str:
    """What does not work, tool by tool."""
    lines = ["| model | GraphPrune | torch-pruning |", "|---|---|---|"]
    for row in rows:
        if row["status"] != "ours+theirs":
            cells = [cell(_outcome(row[tool])) for tool in ("ours", "theirs")]
            lines.append(f"| {row['model']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _outcome(row: Row) -> str:
    if row["status"] == "works":
        return "works"
    return f"{row['status']} in {row.get('stage', '?')}" + (f": {why(row)[:160]}" if "error" in row else "")

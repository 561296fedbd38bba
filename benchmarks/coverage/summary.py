"""README.md of this folder, written from the results alone."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from peer_summary import peers
from process import Row
from results import read
from wording import cell, difference, held, percent, why

from graphprune.formats.files import atomic_write_text

#: Share of the parameters that should go where the architecture allows it.
ENOUGH = 0.45

_HEAD = """# Coverage: how many architectures, exactly, and how fast

Written by `python benchmarks/coverage/run.py report` from the files in `results/`; do not edit by hand.

Every model is built with random weights (nothing constant is left constant, layers scaled so that the images
reach the output), captured, traced, and half of the exact groups of every set are removed, chosen at random.
The slim model is then compared with the masked one on two fresh inputs. *Difference* is the largest one
relative to the largest output. **Exact** means at most 1e-5 in float32, or, where rounding alone is more than
that, at most 1e-9 in float64. Each model has a process of its own with a time limit. Groups whose removal
would change a statistic (LayerNorm, GroupNorm, ...) are left alone, as they are by default.

    python -m venv coverage && . coverage/bin/activate
    pip install -e . torch==2.14.1 torchvision==0.29.1 timm==1.0.31 torch-pruning==1.6.1
    python benchmarks/coverage/run.py torchvision
    python benchmarks/coverage/run.py timm
    python benchmarks/coverage/run.py peers
    python benchmarks/coverage/run.py branches
    python benchmarks/coverage/run.py report

A run that was stopped goes on with `--resume`; `--resume --retry` measures again what did not succeed.
"""


def write_readme(folder: Path, output: Path) -> None:
    """Write the tables of all sub-runs that have results."""
    parts = [_HEAD]
    for name, title in (("torchvision", "torchvision: classification and segmentation"), ("timm", "timm, by families")):
        document = read(name, folder)
        if document:
            parts += [f"## {title}", about(document), coverage(document["rows"])]
    document = read("peers", folder)
    if document:
        parts += ["## Beside torch-pruning 1.6.1", about(document), peers(document["rows"])]
    document = read("branches", folder)
    if document:
        parts += ["## Whole branches of ResNet56 removed", branches(document)]
    atomic_write_text(output, "\n\n".join(part.strip() for part in parts if part.strip()) + "\n")


def branches(document: Row) -> str:
    """What is left of a ResNet56 without every second block."""
    machine, rows = document["machine"], document["rows"]
    lines = [
        f"`{document['command']}`, seed {document['seed']}, revision {document['revision']}, {machine['cpu']}, "
        f"{machine['instruction_set']}.",
        f"Removed: all inner channels of {', '.join(rows[0]['blocks_removed'])}. Such a block adds what its last "
        "normalization makes of zeros, one number a channel; where that is zero, the addition goes as well. "
        "*Exported*: the slim model written as ONNX; the exporter writes an addition of one number a channel as a "
        "depthwise convolution, which keeps onnxruntime's layout. *Slimmed*: the dense file through `slim_onnx` with "
        "the same plan.",
        "",
        "| shifts of the last normalization | file | convolutions | additions | M multiply-accumulates | largest "
        "difference from the masked model | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        dense, case = row["onnx"]["dense"], row["case"].removeprefix("shifts ")
        low, high = row["speedup_interval"]
        for name, label, speedup in (
            ("slim", "exported", f"{row['speedup']:.2f}x ({low:.2f} - {high:.2f})"),
            ("pass", "slimmed", ""),
        ):
            found, error = row["onnx"][name], row["difference"][f"onnx {name}"]
            cells = [f"{dense[key]} → {found[key]}" for key in ("Conv", "Add")]
            macs = f"{dense['macs'] / 1e6:.1f} → {found['macs'] / 1e6:.1f}"
            lines.append(f"| {case} | {label} | {' | '.join(cells)} | {macs} | {error:.0e} | {speedup} |")
    return "\n".join(lines)


def about(document: Row) -> str:
    """What the numbers must be read with."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    loads = [row["load"][0] for row in _runs(document["rows"]) if "load" in row]
    busy = f"{min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}" if loads else "unknown"
    revisions = sorted({row["revision"] for row in document["rows"] if "revision" in row})
    machine = document["machine"]
    return (
        f"`{document['command']}`, seed {document['seed']}, ratio {document['ratio']}, {document['threads']} thread, "
        f"limit {document['limit_seconds']:g} s.\n{machine['cpu']}, {machine['instruction_set']}, "
        f"{machine['logical_cores']} cores, Python {machine['python']}, {versions}.\n"
        f"Revision {', '.join(revisions)}, {document['date']}; load average {busy}: where it is above the number of "
        "cores, times are disturbed by other work."
    )


def _runs(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        yield from (row[tool] for tool in ("ours", "theirs") if isinstance(row.get(tool), dict))
        yield row


def coverage(rows: Sequence[Row]) -> str:
    """Counts, what stands out, and one line a model."""
    large = [row for row in rows if row["status"] == "too big"]
    rows = [row for row in rows if row["status"] != "too big"]
    parts = [counts(rows), slowest(rows), problems(rows), little(rows), unknown(rows)]
    if large:
        parts.append("Left out, above 150 M parameters: " + ", ".join(row["model"] for row in large) + ".")
    return "\n\n".join(part for part in [*parts, models(rows)] if part)


def counts(rows: Sequence[Row]) -> str:
    """How many models got how far."""
    exact = [row for row in rows if _exact(row)]
    families = {row["family"] for row in rows}
    whole = families - {row["family"] for row in rows if not _exact(row)}
    compared = [row for row in rows if "difference" in row]
    lines = [
        f"| | of {len(rows)} models |",
        "|---|---|",
        f"| traced | {sum('groups' in row for row in rows)} |",
        f"| **slim and exact** | **{len(exact)}** ({percent(len(exact) / max(len(rows), 1))}) |",
        f"| families of which every model is exact | {len(whole)} of {len(families)} |",
        f"| wrong (slim differs from masked, unnoticed) | {sum(row['status'] == 'different' for row in rows)} |",
        f"| stopped with an error, killed or out of time | {sum(_stopped(row) for row in rows)} |",
        f"| nothing to remove | {sum(row['status'] == 'nothing removed' for row in rows)} |",
        f"| slim as the model's own class | {sum(row.get('kind') == 'module' for row in rows)} |",
        f"| slim as a captured graph | {sum(row.get('kind') == 'graph' for row in rows)} |",
    ]
    if compared:
        worst = max(compared, key=lambda row: min(row["difference"], row.get("difference_float64", 1.0)))
        lines.append(f"| median difference | {statistics.median(row['difference'] for row in compared):.1e} |")
        lines.append(f"| largest difference | {difference(worst)} ({worst['model']}) |")
        removed = statistics.median(row["parameters_removed"] for row in compared)
        lines.append(f"| median share of parameters removed | {percent(removed)} |")
    return "\n".join(lines)


def _exact(row: Row) -> bool:
    return str(row["status"]).startswith("exact")


def _stopped(row: Row) -> bool:
    return row["status"] in ("error", "killed", "timeout")


def slowest(rows: Sequence[Row]) -> str:
    """Where the time goes."""
    done = [row for row in rows if row.get("seconds")]
    lines = ["| stage | median s | slowest |", "|---|---|---|"]
    for stage in ("capture", "trace", "plan", "slim", "verify"):
        timed = sorted((row["seconds"][stage], row["model"]) for row in done if stage in row["seconds"])
        if timed:
            top = ", ".join(f"{model} {seconds:.1f}" for seconds, model in reversed(timed[-3:]))
            lines.append(f"| {stage} | {statistics.median(seconds for seconds, _ in timed):.2f} | {top} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def problems(rows: Sequence[Row]) -> str:
    """Models that are not exact, and what stopped them."""
    lines = [
        f"| {row['model']} | {row['status']} in {row.get('stage', '?')} | {cell(why(row))} |"
        for row in rows
        if not _exact(row)
    ]
    return "\n".join(["| not exact | | what stopped it |", "|---|---|---|", *lines]) if lines else "All are exact."


def little(rows: Sequence[Row]) -> str:
    """Exact models that lose less than they might, and why."""
    lines = [
        f"| {row['model']} | {percent(row['parameters_removed'])} | {cell(held(row))} |"
        for row in sorted(rows, key=lambda row: row.get("parameters_removed", 1.0))
        if _exact(row) and row["parameters_removed"] < ENOUGH
    ]
    head = [f"| less than {percent(ENOUGH)} removed | share | what holds the rest |", "|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def unknown(rows: Sequence[Row]) -> str:
    """Operators without a rule, with the number of models that have them."""
    seen = Counter(operator for row in rows for operator in row.get("unknown", {}))
    text = ", ".join(f"`{operator}` ({number})" for operator, number in seen.most_common())
    return f"Operators without a rule (number of models), whose channels are frozen: {text}." if text else ""


def models(rows: Sequence[Row]) -> str:
    """One line a model."""
    lines = [
        "<details><summary>All models</summary>\n",
        "| model | family | M parameters | result | removed | groups | inexact | slim as | difference "
        "| capture s | trace s | plan s | slim s | verify s | peak / model memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row.get("seconds", {})
        times = [f"{seconds[s]:.2f}" if s in seconds else "" for s in ("capture", "trace", "plan", "slim", "verify")]
        memory = row.get("memory_mb")
        cells = [
            row["model"],
            row["family"],
            f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "",
            row["status"],
            percent(row["parameters_removed"]) if "parameters_removed" in row else "",
            str(row.get("groups", "")),
            str(row.get("inexact", "")),
            row.get("kind", ""),
            difference(row) if "difference" in row else "",
            *times,
            f"{memory['peak'] / memory['model']:.1f}" if memory else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "\n</details>"])

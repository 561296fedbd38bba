"""RESULTS.md of this folder, written by `python benchmarks/cifar10/report.py` from results/*/result.json alone."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from graphprune import CompressConfig  # noqa: E402
from graphprune.files import atomic_write_text  # noqa: E402

Run = Mapping[str, Any]

_HEAD = """# Results on CIFAR-10

Written by `python benchmarks/cifar10/report.py` from `results/*/result.json`; do not edit by hand. What the figures
mean is in [README.md](README.md). Shares are those of the dense network's, counted on the ONNX files; *speed-up* is
measured in onnxruntime with a batch of 1 on 1 thread, files in turns, with its 95 % interval. *Images left*: agreement
on images held out of `train/`, by which settings are chosen. *Agreement*, *distance* (squared, of the logits, relative
to their spread) and *accuracy*: on the images named in *judged on*. A run without `bn_freeze` is one before there was
such a setting: its statistics follow the batches to the end.
"""
_COLUMNS = (
    "experiment",
    "asked for",
    "settings",
    "seed",
    "judged on",
    "epochs",
    "MACs",
    "parameters",
    "speed-up",
    "agreement",
    "distance",
    "accuracy",
    "change",
    "images left",
)
_LOOKED = {"accuracy_held_out": "accuracy on images left", "accuracy_val": "accuracy on `val/`"}
_BUDGETS = ("macs", "params", "speedup", "latency_ms")
#: Settings that are told where they are not the default.
_UNUSUAL = ("mix", "recipe", "policy", "sigma", "shrink", "freeze")
_DEFAULTS = CompressConfig().to_dict()
_SETTINGS = (
    "lr",
    "lambda_feature",
    "temperature",
    "warmup",
    "sparsify",
    "bn_freeze",
    "n_students",
    "course",
    "sensitivity",
    "precision",
)


def main() -> None:
    """Write RESULTS.md."""
    runs = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*/result.json"))]
    parts = [_HEAD, table(runs)]
    for run in runs:
        parts += [f"## {title(run)}", f"`{run['record']['command']}`", facts(run), course(run["history"])]
    atomic_write_text(HERE / "RESULTS.md", "\n\n".join(part.strip() for part in parts) + "\n")


def title(run: Run) -> str:
    """What a run is called."""
    record = run["record"]
    return f"{record['experiment']}, {run['config']['epochs']:g} epochs, seed {record['seed']}, {record['judged_on']}"


def table(runs: Sequence[Run]) -> str:
    """One line for each file that a run delivered."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for run in runs for cells in rows(run)]
    return "\n".join(lines)


def rows(run: Run) -> Iterator[list[str]]:
    """The slim files of a run: the network itself, and its int8 version if there is one."""
    dense, record, config = run["models"][0], run["record"], run["config"]
    names = [*_SETTINGS, *(name for name in _UNUSUAL if config.get(name, _DEFAULTS[name]) != _DEFAULTS[name])]
    settings = ", ".join(f"{name} {config[name]}" for name in names if name in config)
    asked = ", ".join(f"{name} {config[name]:g}" for name in _BUDGETS if isinstance(config.get(name), int | float))
    for model in run["models"][1:]:
        low, high = model["speedup_interval"]
        is_slim = model["name"] == "slim"
        yield [
            record["experiment"] if is_slim else f"{record['experiment']}: {model['name']}",
            asked,
            settings,
            str(record["seed"]),
            record["judged_on"],
            f"{config['epochs']:g}",
            f"{model['macs'] / dense['macs']:.1%}" if model["macs"] else "",
            f"{model['params'] / dense['params']:.1%}" if model["params"] else "",
            f"{model['speedup']:.2f} ({low:.2f} - {high:.2f})",
            f"{model['agreement']:.2%}",
            f"{run['quality']['distance']:.4f}" if is_slim else "",
            f"{model['accuracy']:.2%}",
            f"{100 * (model['accuracy'] - dense['accuracy']):+.2f}",
            f"{run['quality']['held_out_agreement']:.2%}" if is_slim else "",
        ]


def facts(run: Run) -> str:
    """Where and how long."""
    machine = run["machine"]
    steps, seconds = run["steps"]["number"], run["steps"]["cpu_seconds"]
    return (
        f"{machine['cpu']} ({', '.join([machine['instruction_set'], *machine['features']])}), "
        f"torch {machine['torch']}, onnxruntime {machine['onnxruntime']}; revision {run['record']['revision']}; "
        f"{steps} steps of {run['config']['batch_size']} images in {seconds / 60:.0f} processor minutes."
    )


def course(history: Sequence[Mapping[str, Any]]) -> str:
    """Agreement and accuracy over the run; by the student as it is, before its statistics are estimated anew."""
    accuracies = [name for name in history[0] if name.startswith("accuracy_")]
    names = ["epoch", "phase", "MACs", "agreement on images left", *(_LOOKED[name] for name in accuracies)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for record in history:
        shares = [f"{record[name]:.2%}" for name in ("agreement", *accuracies)]
        lines.append(
            "| " + " | ".join([f"{record['epoch']:.1f}", record["phase"], f"{record['macs']:.1%}", *shares]) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""RESULTS.md of this folder, written by `python benchmarks/cifar10/report.py` from results/*/result.json alone."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from experiments import EXPERIMENTS  # noqa: E402
from run import settings  # noqa: E402

from graphprune import CompressConfig  # noqa: E402
from graphprune.formats.files import atomic_write_text  # noqa: E402

Run = Mapping[str, Any]

_HEAD = """# Results on CIFAR-10

Written by `python benchmarks/cifar10/report.py` from `results/*/result.json`; do not edit by hand. What the figures
mean is in [README.md](README.md). Shares are those of the dense network's, counted on the ONNX files; *speed-up* is
measured in onnxruntime with a batch of 1 on 1 thread, files in turns, with its 95 % interval. *Images left*: agreement
on images held out of `train/`, by which settings are chosen. *Agreement*, *distance* (squared, of the logits, relative
to their spread) and *accuracy*: on the images named in *judged on*. A run without `bn_freeze` is one before there was
such a setting: its statistics follow the batches to the end.
"""
_ABLATION = """## One change at a time: {network} of {accuracy:.2%}, {epochs:g} epochs

On `val/`; all settings but those named are the defaults. Mean over the seeds, and the lowest and highest of them.
*Minutes*: of one processor, spent in steps. A change of accuracy has a standard error of about {error:.2f} points by
the choice of the images alone (that of a count of answers that differ).
"""
_ABLATION_COLUMNS = ("experiment", "file", "seeds", "MACs", "agreement", "distance", "change", "images left", "minutes")
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
    parts = [_HEAD, table(runs), *ablations(runs)]
    for run in runs:
        parts += [f"## {title(run)}", f"`{run['record']['command']}`", facts(run)]
        for member in members(run):
            parts += [*([f"`{member['name']}.onnx`:"] if "name" in member else []), course(member["history"])]
    atomic_write_text(HERE / "RESULTS.md", "\n\n".join(part.strip() for part in parts) + "\n")


def members(run: Run) -> Sequence[Mapping[str, Any]]:
    """What a run tells of each of its slim models: of the one, or of those of a family."""
    found: Sequence[Mapping[str, Any]] = run["members"] or [run]
    return found


def ablations(runs: Sequence[Run]) -> Iterator[str]:
    """For each dense network, a table of the runs that differ from the defaults in what they are named for alone."""
    groups: dict[tuple[str, float, float], dict[str, list[Run]]] = {}
    for run in runs:
        if run["record"]["judged_on"] == "val/" and is_as_named(run):
            name = run["record"]["experiment"]
            dense = run["models"][0]["accuracy"]  # tells networks of one name apart that were trained twice
            group = groups.setdefault((EXPERIMENTS[name].model, dense, run["config"]["epochs"]), {})
            group.setdefault(name, []).append(run)
    for (network, accuracy, epochs), group in groups.items():
        if len(group) > 2:
            ordered = [(name, group[name]) for name in EXPERIMENTS if name in group]
            differing = mean(1 - member["quality"]["agreement"] for _, same in ordered for member in members(same[0]))
            error = 100 * math.sqrt(differing / ordered[0][1][0]["quality"]["images"])
            yield _ABLATION.format(network=network, accuracy=accuracy, epochs=epochs, error=error)
            lines = ["| " + " | ".join(_ABLATION_COLUMNS) + " |", "|---" * len(_ABLATION_COLUMNS) + "|"]
            yield "\n".join([*lines, *("| " + " | ".join(row) + " |" for each in ordered for row in ablation(*each))])


def is_as_named(run: Run) -> bool:
    """Whether all settings but the number of epochs are those of the experiment, or else the defaults."""
    record, config = run["record"], dict(run["config"])
    named = settings(EXPERIMENTS[record["experiment"]], record["seed"], {}).to_dict()
    return all(config.get(name) == value for name, value in named.items() if name not in ("epochs", "eval_every"))


def ablation(name: str, runs: Sequence[Run]) -> Iterator[list[str]]:
    """Lines of one experiment: the same file of all seeds in each."""
    minutes = spread([run["steps"]["cpu_seconds"] / 60 for run in runs], "{:.0f}")
    for number, first in enumerate(members(runs[0])):
        same = [members(run)[number] for run in runs]
        quality = [member["quality"] for member in same]
        yield [
            EXPERIMENTS[name].about,
            first.get("name", "slim"),
            ", ".join(str(run["record"]["seed"]) for run in runs),
            spread([member["reached"]["macs"] for member in same], "{:.1%}"),
            spread([each["agreement"] for each in quality], "{:.2%}"),
            spread([each["distance"] for each in quality], "{:.4f}"),
            spread([100 * (each["accuracy"]["slim"] - each["accuracy"]["dense"]) for each in quality], "{:+.2f}"),
            spread([each["held_out_agreement"] for each in quality], "{:.2%}"),
            minutes if not number else "",
        ]


def spread(values: Sequence[float], pattern: str) -> str:
    """The mean; and the range, where there is more than one."""
    text = pattern.format(mean(values))
    return text if len(values) < 2 else f"{text} ({pattern.format(min(values))} to {pattern.format(max(values))})"


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
    qualities = {member.get("name", "slim"): member["quality"] for member in members(run)}
    names = [*_SETTINGS, *(name for name in _UNUSUAL if config.get(name, _DEFAULTS[name]) != _DEFAULTS[name])]
    settings = ", ".join(f"{name} {config[name]}" for name in names if name in config)
    asked = ", ".join(f"{name} {budget(config[name])}" for name in _BUDGETS if config.get(name) is not None)
    for model in run["models"][1:]:
        low, high = model["speedup_interval"]
        quality = qualities.get(model["name"])  # none of an int8 version
        yield [
            record["experiment"] if model["name"] == "slim" else f"{record['experiment']}: {model['name']}",
            asked,
            settings,
            str(record["seed"]),
            record["judged_on"],
            f"{config['epochs']:g}",
            f"{model['macs'] / dense['macs']:.1%}" if model["macs"] else "",
            f"{model['params'] / dense['params']:.1%}" if model["params"] else "",
            f"{model['speedup']:.2f} ({low:.2f} - {high:.2f})",
            f"{model['agreement']:.2%}",
            f"{quality['distance']:.4f}" if quality else "",
            f"{model['accuracy']:.2%}",
            f"{100 * (model['accuracy'] - dense['accuracy']):+.2f}",
            f"{quality['held_out_agreement']:.2%}" if quality else "",
        ]


def budget(asked: float | Sequence[float]) -> str:
    """What was asked for, of one student or of each."""
    return " / ".join(f"{share:g}" for share in asked) if isinstance(asked, Sequence) else f"{asked:g}"


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

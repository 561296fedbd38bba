"""Run experiments on CIFAR-10, one after the other; a run that was stopped goes on when the command is given again.

    python benchmarks/cifar10/run.py --list
    python benchmarks/cifar10/run.py resnet20 resnet20-one-shot --seed 0 1 2 --data cifar10-jpeg.zip --models MODELS
    python benchmarks/cifar10/run.py resnet20 --tune --set lr=0.05 --data cifar10-jpeg.zip --models MODELS

Training sees `train/` without labels, but for 2,000 images that are held out of it. With --tune the result is judged
on those, and `val/` is not opened: every choice is to be made that way. Without it the result is judged on `val/`.
Accuracy and agreement over the epochs are recorded, and nothing is decided by them.

One thread. Each result goes to RESULTS/NAME-seedN[-tune...]/ : result.json (metrics, settings, command, seed, revision)
and compress.log. Models, checkpoints and ONNX files stay in the work folder.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402
from experiments import EXPERIMENTS, Experiment, find  # noqa: E402
from record import without_folders  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.cli.compress import with_missed  # noqa: E402
from graphprune.cli.options import RunState  # noqa: E402
from graphprune.cli.progress import progress  # noqa: E402
from graphprune.data.batches import evaluation_batches  # noqa: E402
from graphprune.formats.files import atomic_write_json, atomic_write_text  # noqa: E402

HELD_OUT = 2000  # images of train/
_BATCH = 250


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments (see --list)")
    parser.add_argument("--list", action="store_true", help="show the experiments and stop")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, help="the zip with train/ and val/")
    parser.add_argument("--models", type=Path, help="folder with the reference networks")
    parser.add_argument("--tune", action="store_true", help="judge on images held out of train/; val/ stays closed")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, as in lr=0.05")
    parser.add_argument("--limit", type=int, help="learn from so many images only (for a first look)")
    parser.add_argument("--evaluations", type=int, help="over the run (default: one an epoch)")
    parser.add_argument("--int8", action="store_true", help="deliver an int8 version too")
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--work", type=Path, default=HERE / "runs", help="folder of checkpoints and files")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for."""
    arguments = parse()
    if arguments.list or not arguments.names:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:28} {experiment.about}  {dict(experiment.settings)}")
        return 0
    unknown = [name for name in arguments.names if name not in EXPERIMENTS]
    if unknown or arguments.data is None or arguments.models is None:
        print(f"error: no experiment {unknown[0]}" if unknown else "error: give --data and --models", file=sys.stderr)
        return 2
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    RunState().set_up_log()
    for seed in arguments.seed:
        for name in arguments.names:
            run(name, seed, arguments)
    return 0


def run(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """One experiment with one seed; nothing if its result is there."""
    changes = dict(setting.partition("=")[::2] for setting in arguments.set)
    label = "-".join([name, f"seed{seed}", *(["tune"] if arguments.tune else []), *map("".join, changes.items())])
    target, work = arguments.results / label, arguments.work / label
    if (target / "result.json").exists():
        print(f"{label}: done already")
        return
    experiment = EXPERIMENTS[name]
    config = settings(experiment, seed, changes)
    train = gp.load_images(f"{arguments.data}::train", limit=arguments.limit)
    val = None if arguments.tune else gp.load_images(f"{arguments.data}::val")
    every = max(
        1, round(len(train) * 0.9 / config.batch_size * config.epochs / (arguments.evaluations or config.epochs))
    )
    config = gp.CompressConfig.from_dict({**config.to_dict(), "eval_every": every})
    held_out = train.split(min(config.holdout / len(train), 0.1), seed)[1]
    model = gp.load_model(find(arguments.models, experiment.model), arch=experiment.arch)
    is_begun = (work / "checkpoint.pt").exists()
    with progress() as reporter:
        result, missed = with_missed(
            gp.compress,
            model,
            train,
            output=work,
            config=config,
            eval_images=val,
            benchmark=gp.BenchmarkOptions(seconds=2.0),
            quantize=gp.QuantizeOptions() if arguments.int8 else None,
            resume=is_begun and not (work / "metrics.json").exists(),
            force=(work / "metrics.json").exists(),
            reporter=reporter,
            observer=observer({"held_out": held_out, **({} if val is None else {"val": val})}),
            record={
                "experiment": name,
                "about": experiment.about,
                "seed": seed,
                "command": command(),
                "revision": revision(),
                "judged_on": "2,000 images held out of train/" if val is None else "val/",
            },
        )
    atomic_write_text(target / "compress.log", without_folders((work / "compress.log").read_text()))
    atomic_write_json(target / "result.json", json.loads(without_folders(json.dumps(result.metrics))))
    print(f"{label}\n{result}")
    if missed is not None:
        print(f"{label}: {missed}", file=sys.stderr)


def settings(experiment: Experiment, seed: int, changes: Mapping[str, str]) -> gp.CompressConfig:
    """The settings of a run; the values of `changes` are Python literals, or else text."""
    return gp.CompressConfig.from_dict(
        {
            "precision": "auto",
            "threads": 1,
            "holdout": HELD_OUT,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in experiment.settings.items()},
            **{key: literal(value) for key, value in changes.items()},
            "seed": seed,
        }
    )


def literal(text: str) -> Any:
    """A number, a tuple, True, None; or the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def observer(sources: Mapping[str, gp.ImageSource]) -> Callable[[torch.nn.Module], dict[str, float]]:
    """What looks at a student during the training: its accuracy. For the record; nothing is decided by it."""

    @torch.no_grad()
    def look(student: torch.nn.Module) -> dict[str, float]:
        found = {}
        for name, source in sources.items():
            answers = torch.cat([student(batch).argmax(1) for batch in evaluation_batches(source, _BATCH)])
            found[f"accuracy_{name}"] = float((answers.numpy() == source.labels).mean())
        return found

    return look


def command() -> str:
    """The command line, without the folders of this machine."""
    return without_folders(" ".join(["python", "benchmarks/cifar10/run.py", *sys.argv[1:]]))


def revision() -> str:
    """Revision of the source, with a mark when it was changed since."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())

"""Does `torch.compile` pay in a run? Seconds to compile ResNet56, teacher and student, and of a step with and without.

    python benchmarks/cifar10/compile_time.py --output benchmarks/cifar10/results/compile-time.json

The student is measured as a run has it in its last phase: at 40 % of the MACs, groups removed. It is compiled anew
after every cut, a dozen or so in a run. One thread; processor seconds, the shortest of the repeats, in turns.
Compiling is timed once, with inductor's cache off. `break_even_steps` is how many steps one compilation must serve.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
from step_time import make  # noqa: E402

from graphprune.formats.files import atomic_write_json  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402
from graphprune.runtime.precision import Precision  # noqa: E402
from graphprune.training.engine import Engine  # noqa: E402

LAYOUTS = {"plain": Precision(), "channels last": Precision(channels_last=True)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56", help="a factory in graphprune.models")
    parser.add_argument("--macs", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    engine = make(arguments, "removed")
    steps: dict[str, Callable[[], None]] = {}
    compiling: dict[str, float] = {}
    for layout, precision in LAYOUTS.items():
        for part, step in parts(engine, precision).items():
            steps[f"{part}, {layout}, eager"] = step(lambda module: module)
            compiled = step(torch.compile)
            start = time.process_time()
            compiled()
            compiling[f"{part}, {layout}"] = round(time.process_time() - start, 1)
            steps[f"{part}, {layout}, compiled"] = compiled
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 1):
        for name, run in steps.items():
            start = time.process_time()
            run()
            times[name].extend([time.process_time() - start] if repeat else [])  # the first pays for set-up
    milliseconds = {name: round(1e3 * min(values), 1) for name, values in times.items()}
    result = {
        "model": arguments.model,
        "macs": arguments.macs,
        "batch_size": arguments.batch_size,
        "compile_seconds": compiling,
        "milliseconds": milliseconds,
        "break_even_steps": break_even(compiling, milliseconds),
        "machine": machine_facts().to_dict(),
    }
    for name, value in {**milliseconds, **result["break_even_steps"]}.items():
        print(f"{name:36} {value}")
    if arguments.output:
        atomic_write_json(arguments.output, result)


def parts(engine: Engine, precision: Precision) -> dict[str, Callable[..., Callable[[], None]]]:
    """Makers of the teacher's and the student's part of a step, for a function that may compile a module."""
    engine._use(precision)
    batch = engine._batch(0, 0)
    teacher, student = engine.teacher.tapped.inner, engine.students[0].tapped.inner

    def teach(prepare: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[], None]:
        module = prepare(copy.deepcopy(teacher))

        def run() -> None:
            with torch.no_grad():
                module(batch)

        return run

    def learn(prepare: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[], None]:
        module = prepare(copy.deepcopy(student))

        def run() -> None:
            outputs, features = module(batch)
            torch.autograd.backward(torch.stack([t.square().mean() for t in (*outputs, *features)]).sum())

        return run

    return {"teacher": teach, "student": learn}


def break_even(compiling: dict[str, float], milliseconds: dict[str, float]) -> dict[str, float | None]:
    """Steps after which one compilation has paid, against the faster layout without it; None where it never does."""
    found: dict[str, float | None] = {}
    for name, seconds in compiling.items():
        part = name.split(",")[0]
        eager = min(milliseconds[f"{part}, {layout}, eager"] for layout in LAYOUTS)
        saved = 1e-3 * (eager - milliseconds[f"{name}, compiled"])
        found[name] = round(seconds / saved) if saved > 0 else None
    return found


if __name__ == "__main__":
    main()

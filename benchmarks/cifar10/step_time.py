"""Where the time of a training step goes, and what removal during the training saves; ResNet56, one thread.

    python benchmarks/cifar10/step_time.py --output benchmarks/cifar10/results/step-time.json

The same engine steps four times over, in turns: dense; at 40 % of the MACs with the groups at zero but in place; with
the groups removed; and so with BatchNorm at fixed statistics, as in the last part of a run. Random images and weights,
and the widths that a one-shot plan gives with them: other widths take other times (`width_time.py`). Processor seconds,
the shortest of the repeats. The overhead is that of sensitivity and proximal step together (without the draws, which
are counted apart, per step, at the default of 40 in a run of 20 epochs).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune import models  # noqa: E402
from graphprune.data import ImageSource, Preprocess  # noqa: E402
from graphprune.formats.files import atomic_write_json  # noqa: E402
from graphprune.passes.fx.capture import capture  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402
from graphprune.runtime.precision import Precision  # noqa: E402
from graphprune.training.engine import Engine  # noqa: E402

_STEPS_OF_A_RUN = 20 * 703
_DRAWS_OF_A_RUN = 40


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56", help="a factory in graphprune.models")
    parser.add_argument("--macs", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(1)
    made = {name: make(arguments, name) for name in ("dense", "zero", "removed", "frozen")}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in made}
    for repeat in range(arguments.repeats + 1):
        for name, engine in made.items():
            for part, seconds in step(engine).items():
                times[name].setdefault(part, []).extend([seconds] if repeat else [])  # the first pays for set-up
    result = {
        "model": arguments.model,
        "macs": arguments.macs,
        "batch_size": arguments.batch_size,
        "milliseconds": {n: {part: round(1e3 * min(v), 2) for part, v in parts.items()} for n, parts in times.items()},
        "machine": machine_facts().to_dict(),
    }
    for parts in result["milliseconds"].values():
        whole = parts["teacher"] + parts["student"] + parts["sensitivity"] + parts["optimizer"] + parts["proximal"]
        draws = parts["draw"] * _DRAWS_OF_A_RUN / _STEPS_OF_A_RUN
        parts["step"] = round(whole, 2)
        parts["overhead"] = round((parts["sensitivity"] + parts["proximal"] + draws) / whole, 4)
    found = result["milliseconds"]
    result["step_removed_over_dense"] = round(found["removed"]["step"] / found["dense"]["step"], 3)
    result["step_removed_over_zero"] = round(found["removed"]["step"] / found["zero"]["step"], 3)
    result["step_frozen_over_removed"] = round(found["frozen"]["step"] / found["removed"]["step"], 3)
    for name, parts in found.items():
        print(f"{name:8}", ", ".join(f"{part} {value}" for part, value in parts.items()))
    print("step with groups removed over dense:", result["step_removed_over_dense"])
    print("and with fixed statistics over without:", result["step_frozen_over_removed"])
    if arguments.output:
        atomic_write_json(arguments.output, result)


def make(arguments: argparse.Namespace, state: str) -> Engine:
    """An engine whose student is in that state."""
    torch.manual_seed(0)
    net = getattr(models, arguments.model)().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (20 * arguments.batch_size, 32, 32, 3), np.uint8)
    source = ImageSource(pixels, Preprocess.of((32, 32), 3))
    captured = capture(net, (torch.randn(2, 3, 32, 32),))
    config = gp.CompressConfig(
        macs=arguments.macs,
        batch_size=arguments.batch_size,
        threads=1,
        precision="float32",
        shrink=state in ("removed", "frozen"),
    )
    engine = Engine(captured, gp.trace(captured), source, config)
    engine._use(Precision(channels_last=True))
    student = engine.students[0]
    if state != "dense":
        plan = gp.plan(engine.graph, macs=arguments.macs)
        chosen = engine.graph.removed_by(plan)
        student.set.expected = torch.from_numpy(chosen)
        student.set._line[student.set.expected] = 0.0
        student.set.shrink(student.index, 0.0)
        if config.shrink:
            student._remove_dead(True)
        if state == "frozen":
            student.freeze_bn([engine._batch(0, 1)])
    return engine


def step(engine: Engine) -> dict[str, float]:
    """Processor seconds of the parts of one step."""
    student, schedule = engine.students[0], engine.schedule
    batch, seconds = engine._batch(0, 0), {}

    def timed(part: str, work: Callable[[], object]) -> object:
        start = time.process_time()
        found = work()
        seconds[part] = time.process_time() - start
        return found

    def learn() -> None:
        total, _ = engine.objective(*target, [student], [student(batch)])
        student.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)

    target = timed("teacher", lambda: engine.teacher.targets(batch))
    timed("student", learn)
    timed("sensitivity", lambda: student.set.observe(student._evidence()))
    timed("optimizer", student.optimizer.step)
    # Some of the groups are always fading in the sparsify phase.
    fading = student.set.expected.clone()
    fading[::7] = torch.from_numpy(student.present)[::7]
    before, student.set.expected = student.set.expected, fading
    timed("proximal", lambda: student.set.shrink(student.index, 1e-9, student.optimizer))
    student.set.expected = before
    timed(
        "draw",
        lambda: student.set._select({"macs": schedule.share(schedule.final_draw, engine.config.macs)}, is_final=True),
    )
    return seconds


if __name__ == "__main__":
    main()

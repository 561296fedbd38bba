"""The process that measures one model; started by `process.run_child`, not by hand."""

import argparse
import logging
import os
import warnings
from pathlib import Path

from process import Row, Stages, describe, limit_memory


def main() -> None:
    """Run one task on one model and leave its row in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("coverage", "ours", "theirs", "both"))
    parser.add_argument("suite", choices=("torchvision", "timm"))
    parser.add_argument("model")
    parser.add_argument("--row", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-parameters", type=float, default=150e6)
    parser.add_argument("--memory", type=float, default=0.0, help="GB of address space, 0 for no limit")
    arguments = parser.parse_args()
    limit_memory(arguments.memory)
    warnings.simplefilter("ignore")
    for name in ("graphprune", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    row: Row = {"suite": arguments.suite, "model": arguments.model, "status": "running", "load": load()}
    stages = Stages(row, arguments.row)
    with stages("import"):
        import torch

        torch.set_num_threads(arguments.threads)
        if arguments.task == "coverage":
            from measure import coverage as run
        else:
            from peers import TASKS

            run = TASKS[arguments.task]
    try:
        run(stages, arguments)
    except Exception as error:  # whatever a model or a tool raises is the result
        row["status"] = "error"
        row["error"] = describe(error)
    row["seconds"] = {name: round(value, 4) for name, value in stages.seconds.items()}
    row["cpu_seconds"] = {name: round(value, 4) for name, value in stages.cpu.items()}
    stages.save()


def load() -> list[float]:
    """How busy the machine was over the last one and five minutes."""
    return [round(value, 1) for value in os.getloadavg()[:2]]


if __name__ == "__main__":
    main()

"""The process that handles one network or one file; started by `run.py`, not by hand."""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "coverage"))

from process import Row, Stages, describe, limit_memory


def main() -> None:
    """Run one task and leave its row in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("export", "check"))
    parser.add_argument("suite")
    parser.add_argument("network", help="name of a network (export), or a file (check)")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--row", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=0.0, help="GB of address space, 0 for no limit")
    arguments = parser.parse_args()
    limit_memory(arguments.memory)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    row: Row = {"suite": arguments.suite, "model": arguments.network, "status": "running", "load": os.getloadavg()[0]}
    stages = Stages(row, arguments.row)
    if arguments.task == "export":
        import torch

        torch.set_num_threads(arguments.threads)
        from exports import export as run
    else:
        from roundtrip import check as run
    try:
        run(stages, arguments)
    except Exception as error:  # whatever a file or a tool raises is the result
        row["status"] = "error"
        row["error"] = describe(error)
    row["seconds"] = {name: round(value, 3) for name, value in stages.seconds.items()}
    stages.save()


if __name__ == "__main__":
    main()

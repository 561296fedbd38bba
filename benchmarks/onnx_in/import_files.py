"""ONNX files of others read as torch modules: each computes what onnxruntime does, or is refused with its reason.

    python benchmarks/onnx/run.py fetch --folder WORK           # files in packages of others, test data of onnx
    python benchmarks/onnx_in/import_files.py --folder WORK     # each in a process of its own

    python benchmarks/onnx_in/export_networks.py --folder ZOO   # networks of torchvision and timm
    python benchmarks/onnx_in/import_files.py --folder ZOO --name exports

Compared on the inputs that lie beside a file, or else on random ones. Load times are processor seconds of onnxruntime,
without its optimization, and of the import without the comparison. Stopped runs go on where they were.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "coverage")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from equality import difference, facts  # noqa: E402
from process import Row, Stages, describe, run_child  # noqa: E402
from record import without_folders  # noqa: E402

from graphprune.formats.files import atomic_write_text  # noqa: E402
from graphprune.passes.errors import GraphPruneError  # noqa: E402
from graphprune.passes.importer import import_onnx  # noqa: E402
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, one_line, open_session  # noqa: E402

_TOLERANCE = 1e-5


def main() -> None:
    """Check what is not checked yet, and write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what `benchmarks/onnx/run.py fetch` has filled")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one process")
    parser.add_argument("--name", default="files", help="of the result")
    parser.add_argument("--only", default="**/*.onnx", help="a pattern of files")
    arguments = parser.parse_args()
    files = arguments.folder / "files"
    rows: dict[str, Row] = {}
    for path in sorted(files.glob(arguments.only), key=lambda path: (path.stat().st_size < 100_000, path)):
        name = str(path.relative_to(files))
        kept = arguments.folder / "import" / f"{name.replace('/', '+')}.json"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            atomic_write_text(kept, json.dumps(run_child((str(path),), arguments.limit, 1, child)))
        rows[name] = json.loads(kept.read_text())
        print(name, rows[name]["status"], rows[name].get("error", rows[name].get("reason", "")), flush=True)
    report(rows, arguments.name)


def child() -> None:
    """Check one file and leave its row in a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--row", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    row: Row = {"status": "running", "bytes": arguments.path.stat().st_size}
    stages = Stages(row, arguments.row)
    stages.save()
    row.update(checked(arguments.path))
    stages.save()


def checked(path: Path) -> Row:
    """One file."""
    try:
        start = time.process_time()
        open_session(path, optimize=False)
        loaded = time.process_time()
        module = import_onnx(path)
        imported = time.process_time()
        beside = path.with_suffix(".npz")
        feeds = dict(np.load(beside)) if beside.exists() else None
        found = difference(module, path, 0, feeds, _TOLERANCE)
    except GraphPruneError as refusal:
        return {"status": "refused", "reason": without_folders(str(refusal).splitlines()[0])}
    except RUNTIME_ERRORS as fault:
        return {"status": "not run by onnxruntime", "reason": without_folders(one_line(fault))}
    except Exception as fault:  # whatever it is, it is the finding
        return {"status": "bug", **describe(fault)}
    times = {"onnxruntime_seconds": round(loaded - start, 3), "import_seconds": round(imported - loaded, 3)}
    return {"status": found.status(_TOLERANCE), **vars(found), "left_out": module.left_out, **times}


def report(rows: dict[str, Row], name: str) -> None:
    """Write what was found."""
    summary = {
        "command": f"python benchmarks/onnx_in/import_files.py --folder WORK --name {name}",
        **facts(),
        "tolerance": _TOLERANCE,
        "files": dict(Counter(row["status"] for row in rows.values())),
        "rows": rows,
    }
    (HERE / "results").mkdir(exist_ok=True)
    atomic_write_text(HERE / "results" / f"{name}.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()

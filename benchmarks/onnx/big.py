"""Time and memory of `graphprune slim` on large files, beside what onnxruntime needs to load and optimize them.

    python benchmarks/onnx/big.py make --folder WORK       # ResNet50, and a 2.5 GB file with external data
    python benchmarks/onnx/big.py measure --folder WORK    # results/big.json and README.md

Every measurement is a process of its own, onnxruntime and slim in turn. Inside it the peak of resident memory is
reset once everything is imported. It counts all that is resident, so also pages of files that are mapped and that
the system could drop. One thread, unless the processor affinity says otherwise.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "coverage")]

MEGABYTE = 1e6
#: File -> times it is measured.
CASES = {"resnet50.onnx": 9, "resnet50-half.onnx": 9, "wide-half.onnx": 3}
ABOUT = {
    "resnet50.onnx": "ResNet50, nothing dead",
    "resnet50-half.onnx": "ResNet50, half of each group dead",
    "wide-half.onnx": "2.5 GB of external data, half of each group dead",
}


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "measure", "onnxruntime", "slim"), help="the last two: one process")
    parser.add_argument("--folder", type=Path, required=True, help="where the files are")
    parser.add_argument("--file", help="of one process")
    parser.add_argument("--only", nargs="*", default=list(CASES), help="files to measure")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.command == "make":
        from big_models import make

        make(arguments.folder, arguments.seed)
    elif arguments.command == "measure":
        measure(arguments.folder, arguments.only)
    else:
        work = load if arguments.command == "onnxruntime" else slim
        print(json.dumps(work(arguments.folder / arguments.file)))


# -- one process ---------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """What a user of onnxruntime does: a session with all optimizations, one thread."""
    import numpy  # noqa: F401
    import onnxruntime as ort
    from process import reset_peak

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    reset_peak()
    before, start = resident()[0], time.perf_counter()
    session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "imported": before, "peak": resident()[1], "outputs": len(session.get_outputs())}


def slim(path: Path) -> dict[str, Any]:
    """The whole command, from its arguments to what it prints; with the seconds that go into the proof."""
    from process import clock_calls, reset_peak

    from graphprune import slimming
    from graphprune.cli.main import main as command
    from graphprune.verification.proof import Proof

    for name in (
        "graphprune.cli.slim",
        "graphprune.report.tables",
        "graphprune.report.summary",
        "rich.console",
        "rich.table",
    ):
        importlib.import_module(name)  # what the command imports when it is called

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = Path(folder) / "slim.onnx"
        with clock_calls(slimming, ("run_reference",)) as reference, clock_calls(Proof, ("verdict_on",)) as comparison:
            reset_peak()
            before, start = resident()[0], time.perf_counter()
            sys.stdout, told = sys.stderr, sys.stdout
            code = command(["slim", os.fspath(path), os.fspath(target)])
            seconds, peak = time.perf_counter() - start, resident()[1]
            sys.stdout = told
        if code:
            raise SystemExit(code)
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
    return {
        "seconds": seconds,
        "proof": reference()[0] + comparison()[0],
        "imported": before,
        "peak": peak,
        "written": size / MEGABYTE,
    }


def resident() -> tuple[float, float]:
    """Resident memory now and at its peak, in MB of 10**6 bytes."""
    from process import MEGABYTE as BINARY
    from process import resident_mb

    now, peak = resident_mb()
    return now * BINARY / MEGABYTE, peak * BINARY / MEGABYTE


# -- all of them ---------------------------------------------------------------------------------------


def measure(folder: Path, names: Sequence[str]) -> None:
    """Measure the files and write the results."""
    from page import page
    from results import surroundings

    from graphprune.formats.files import atomic_write_json, atomic_write_text

    rows = []
    for name in names:
        runs: dict[str, list[dict[str, Any]]] = {"onnxruntime": [], "slim": []}
        for _ in range(CASES[name]):
            for work, found in runs.items():
                found.append(child(work, folder, name))
        row = {"file": name, "about": ABOUT[name], "bytes": size_of(folder / name), "runs": runs}
        rows.append({**row, "summary": summary(row)})
        print(name, rows[-1]["summary"], flush=True)
    affinity = len(os.sched_getaffinity(0))
    about = {"command": "python benchmarks/onnx/big.py measure", "processors": affinity, **surroundings()}
    (HERE / "results").mkdir(exist_ok=True)
    atomic_write_json(HERE / "results" / "big.json", {**about, "rows": rows})
    atomic_write_text(HERE / "README.md", page(HERE / "results"))


def child(work: str, folder: Path, name: str) -> dict[str, Any]:
    """One process; `wall` is its whole life, from the start of the interpreter."""
    words = [sys.executable, __file__, work, "--folder", str(folder), "--file", name]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    start = time.perf_counter()
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall = time.perf_counter() - start
    return {key: round(value, 4) for key, value in {"wall": wall, **json.loads(done.stdout)}.items()}


def size_of(path: Path) -> int:
    """Bytes of a file with its external data."""
    return sum(part.stat().st_size for part in (path, Path(f"{path}.data")) if part.exists())


def summary(row: dict[str, Any]) -> dict[str, float]:
    """Medians; the ratio of times is the median of those of runs that stood side by side."""
    ours, theirs = row["runs"]["slim"], row["runs"]["onnxruntime"]
    middle = statistics.median
    size = row["bytes"] / MEGABYTE
    found = {
        "load": middle(run["seconds"] for run in theirs),
        "slim": middle(run["seconds"] for run in ours),
        "ratio": middle(a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)),
        "proof": middle(run["proof"] for run in ours),
        "wall": middle(a["wall"] / b["wall"] for a, b in zip(ours, theirs, strict=True)),
        "memory": max(run["peak"] for run in ours) / size,
        "own": max(run["peak"] - run["imported"] for run in ours) / size,
        "load_memory": max(run["peak"] for run in theirs) / size,
    }
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()

"""Random ONNX graphs read as torch modules: each computes what onnxruntime does, or is refused in one line.

    python benchmarks/onnx_in/fuzz.py --folder WORK [--seed 0] [--graphs 2000]

The graphs are those of `benchmarks/onnx/fuzz.py`. Work is done in processes of their own, some dozens at a time, so
that a crash is a finding too. A run that was stopped goes on where it was.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT), str(HERE.parent / "coverage")]
sys.path += [str(ROOT / folder) for folder in ("tests/properties", "tests/passes/onnx")]

import onnx  # noqa: E402
import torch  # noqa: E402
from equality import difference, facts  # noqa: E402
from process import Row, describe, run_child, save_rows  # noqa: E402
from random_onnx import numbered_model  # noqa: E402

from graphprune.formats.files import atomic_write_text  # noqa: E402
from graphprune.passes.errors import GraphPruneError  # noqa: E402
from graphprune.passes.importer import import_onnx  # noqa: E402

_CHUNK = 50  # examples in one process
_TOLERANCE = 1e-5


def main() -> None:
    """Run what is not done yet, and write results/fuzz.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where rows are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one process")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for start in range(0, arguments.graphs, _CHUNK):
        path = arguments.folder / f"import-{arguments.seed}-{start}.json"
        if not path.exists():
            found = examples(arguments.seed, range(start, min(start + _CHUNK, arguments.graphs)), arguments.limit)
            atomic_write_text(path, json.dumps(found))
        rows += json.loads(path.read_text())
        print(start, dict(Counter(row["status"] for row in rows)), flush=True)
    report(arguments.seed, rows)


def examples(seed: int, numbers: range, limit: float) -> list[Row]:
    """The rows of some graphs; one that ends its process gets a row that says so, and the next process goes on."""
    rows: list[Row] = []
    while len(rows) < len(numbers):
        first = numbers[len(rows)]
        answer = run_child((str(seed), str(first), str(numbers.stop - first)), limit, 1, child)
        rows += answer.get("rows", [])
        if answer["status"] != "done" and len(rows) < len(numbers):
            rows.append({"number": numbers[len(rows)], "status": "crash", **answer["error"]})
    return rows


def child() -> None:
    """Check the graphs that were asked for and leave their rows in a file."""
    parser = argparse.ArgumentParser()
    for name in ("seed", "start", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("--row", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    numbers = range(arguments.start, arguments.start + arguments.count)
    save_rows(arguments.row, numbers, lambda number: graph(arguments.seed, number))


def graph(seed: int, number: int) -> Row:
    """One random graph."""
    model, about = numbered_model(seed, number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(model, path)
        try:
            found = difference(import_onnx(path), path, number, tolerance=_TOLERANCE)
        except GraphPruneError as refusal:
            status = "refused" if "\n" not in str(refusal) else "refused in several lines"
            return {"status": status, **about, "reason": str(refusal).splitlines()[0]}
        except Exception as fault:  # whatever it is, it is the finding
            return {"status": "bug", **about, **describe(fault)}
    return {"status": found.status(_TOLERANCE), **about, **vars(found)}


def _unnamed(reason: str) -> str:
    """A reason without the name of the node that it is about."""
    return re.sub(r" '[^']*'", "", reason)


def report(seed: int, rows: list[Row]) -> None:
    """Write what was found."""
    equal = [row for row in rows if row["status"] == "equal"]
    bad = [row for row in rows if row["status"] not in ("equal", "refused")]  # those within rounding for their numbers
    operators = sum((Counter(row["operators"]) for row in equal), Counter[str]())
    summary = {
        "command": f"python benchmarks/onnx_in/fuzz.py --seed {seed} --graphs {len(rows)}",
        **facts(),
        "tolerance": _TOLERANCE,
        "graphs": dict(Counter(row["status"] for row in rows)),
        "largest error": max((row["error"] for row in equal), default=None),
        "refusals": dict(Counter(_unnamed(row["reason"]) for row in rows if row["status"] == "refused").most_common()),
        "operators of those that are equal": dict(sorted(operators.items())),
        "failures and what is equal within rounding": bad,
    }
    (HERE / "results").mkdir(exist_ok=True)
    atomic_write_text(HERE / "results" / "fuzz.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in ("graphs", "refusals")} | {"not equal": bad}, indent=1))


if __name__ == "__main__":
    main()

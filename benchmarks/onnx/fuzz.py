"""Random ONNX graphs and damaged files through `slim`: 2,000 of the one kind, 500 of the other.

    python benchmarks/onnx/fuzz.py --folder WORK [--seed 0] [--graphs 2000] [--damaged 500]

Each random graph (see `tests/properties/random_onnx.py`) is slimmed as it is, with half of the channels of each group
zeroed, and by the plan of those channels; what must hold of the results stands in `tests/properties/onnx_checks.py`.
Then files are damaged in all ways of `tests/properties/corrupt_onnx.py`. Work is done in processes of their own, a few
dozen at a time, so that a crash of onnxruntime is a finding too. A run that was stopped goes on where it was.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "coverage")]

import fuzz_child  # noqa: E402
from process import Row, run_child  # noqa: E402
from results import surroundings  # noqa: E402

from graphprune.formats.files import atomic_write_text  # noqa: E402

#: Examples in one process.
_CHUNK = 50


def main() -> None:
    """Run what is not done yet, and write results/fuzz.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where rows are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--damaged", type=int, default=500)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one process")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    found = {}
    for kind, count in (("graphs", arguments.graphs), ("damaged", arguments.damaged)):
        folder = arguments.folder / f"fuzz-{arguments.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        found[kind] = [row for chunk in chunks(kind, arguments.seed, count, folder, arguments.limit) for row in chunk]
    report(arguments.seed, found)


def chunks(kind: str, seed: int, count: int, folder: Path, limit: float) -> Iterator[list[Row]]:
    """The rows of all examples, some dozen at a time."""
    for start in range(0, count, _CHUNK):
        path = folder / f"{kind}-{start}.json"
        if not path.exists():
            rows = examples(kind, seed, range(start, min(start + _CHUNK, count)), limit)
            atomic_write_text(path, json.dumps(rows))
            bad = [row for row in rows if row["status"] not in ("fine", "refused", "slimmed")]
            print(f"{kind} {start}: {len(rows)} done, {len(bad)} failed", *bad, sep="\n  ", flush=True)
        yield json.loads(path.read_text())


def examples(kind: str, seed: int, numbers: range, limit: float) -> list[Row]:
    """The rows of some examples; one that ends its process gets a row that says so, and the next process goes on."""
    rows: list[Row] = []
    while len(rows) < len(numbers):
        first = numbers[len(rows)]
        words = (kind, str(seed), str(first), str(numbers.stop - first))
        answer = run_child(words, limit, 1, fuzz_child.main)
        rows += answer.get("rows", [])
        if answer["status"] != "done" and len(rows) < len(numbers):
            rows.append({"number": numbers[len(rows)], "status": "crash", **answer["error"]})
    return rows


def report(seed: int, found: dict[str, list[Row]]) -> None:
    """Write what was found."""
    graphs, damaged = found["graphs"], found["damaged"]
    by_kind: dict[str, Counter[str]] = {}
    for row in damaged:
        by_kind.setdefault(row.get("kind", "?"), Counter())[row["status"]] += 1
    summary = {
        "command": f"python benchmarks/onnx/fuzz.py --seed {seed} --graphs {len(graphs)} --damaged {len(damaged)}",
        **surroundings(),
        "graphs": {
            **Counter(row["status"] for row in graphs),
            "with channels to remove": sum(row.get("removed", 0) > 0 for row in graphs),
            "channel groups": sum(row.get("groups", 0) for row in graphs),
            "channel groups removed": sum(row.get("dead", 0) for row in graphs),
            "opsets": dict(sorted(Counter(row["opset"] for row in graphs if "opset" in row).items())),
            "operators": dict(sorted(sum((Counter(row.get("operators", {})) for row in graphs), Counter()).items())),
        },
        "damaged": {
            **Counter(row["status"] for row in damaged),
            "kinds": {kind: dict(sorted(states.items())) for kind, states in sorted(by_kind.items())},
        },
        "failures": failures(graphs) + failures(damaged),
    }
    (HERE / "results").mkdir(exist_ok=True)
    atomic_write_text(HERE / "results" / "fuzz.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: summary[key] for key in ("graphs", "damaged", "failures")}, indent=1))


def failures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of what is not as promised."""
    return [row for row in rows if row["status"] not in ("fine", "refused", "slimmed")]


if __name__ == "__main__":
    main()

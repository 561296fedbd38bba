"""Any ONNX file through `graphprune slim`: exports of public architectures by both exporters of torch.

    python benchmarks/onnx/run.py export --folder WORK       # 62 networks, two files each; hours on one core
    python benchmarks/onnx/run.py check --folder WORK        # every file, each in a process of its own
    python benchmarks/onnx/run.py report --folder WORK       # results/exports.json and README.md

Stopped runs go on where they were: a network or file whose row exists is not done again.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "coverage")]

from process import Row, run_child  # noqa: E402
from results import surroundings  # noqa: E402

from graphprune.files import atomic_write_text  # noqa: E402

NOTES = """\
With the torch path's plan `efficientnet_v2_s` by TorchScript is refused: most weights lost their names, the plan cuts
only a part, and the random network that is left is chaotic (noise of 1e-6 on the input changes the masked file's own
output by 0.75 of its scale).
"""


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("export", "check", "report"))
    parser.add_argument("--folder", type=Path, required=True, help="where models and rows are kept")
    parser.add_argument("--limit", type=float, default=400, help="seconds for one process")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.folder)
        return
    jobs = exports(arguments.folder) if arguments.command == "export" else checks(arguments.folder)
    for row, words in jobs:
        if not row.exists():
            row.parent.mkdir(parents=True, exist_ok=True)
            folder = ["--folder", str(arguments.folder)]
            found = run_child([*words, *folder], arguments.limit, 1, HERE / "child.py")
            atomic_write_text(row, json.dumps(found))
            print(row.stem, found["status"], flush=True)


def exports(folder: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Row and arguments of every network."""
    from exports import NETWORKS

    for suite, names in NETWORKS.items():
        for name in names:
            yield folder / "rows" / f"{suite}-{name}.json", ("export", suite, name)


def checks(folder: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Row and arguments of every file, the small ones first."""
    for path in sorted(folder.glob("[dt]*/*/*.onnx"), key=lambda path: path.stat().st_size):
        exporter, suite = path.parts[-3:-1]
        row = folder / "checks" / f"{exporter}-{suite}-{path.stem}.json"
        yield row, ("check", f"{exporter}-{suite}", str(path))


def report(folder: Path) -> None:
    """Write the rows as one document, and the table."""
    rows = [json.loads(path.read_text()) for path in sorted((folder / "checks").glob("*.json"))]
    head = json.dumps({"command": "python benchmarks/onnx/run.py check", **surroundings()}, indent=1)
    body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    (HERE / "results").mkdir(exist_ok=True)
    atomic_write_text(HERE / "results" / "exports.json", f'{head[:-2]},\n "rows": [\n{body}\n ]\n}}\n')
    atomic_write_text(HERE / "README.md", "\n".join(page(rows)) + "\n")


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of README.md."""
    dead = [row for row in rows if row.get("dead")]
    errors = [row["dead"][key] for row in dead for key in ("error_all", "error_disabled") if key in row["dead"]]
    same = [row["torch"] for row in rows if "named" in row.get("torch", {})]
    found, unchanged = sum(bool(row.get("found")) for row in dead), sum("unchanged" in row for row in rows)
    equal, named = sum(torch["same"] for torch in same), sum(torch["named"] for torch in same)
    yield "# ONNX files of public architectures through `graphprune slim`\n"
    yield "Made by `benchmarks/onnx/run.py` (see its help) from `results/exports.json`, with machine and versions.\n"
    yield f"- with nothing dead, outputs unchanged (1e-4): {unchanged} of {len(rows)} files"
    yield f"- half of the channels of each group zeroed: found without a plan in {found} of {len(dead)} files;"
    yield f"  largest relative error {max(errors, default=0):.1e}, onnxruntime's optimization on or off"
    yield f"- plan of the torch path: {equal} of {named} tensors that {len(same)} files have under the same name"
    yield "  have the sizes that the torch path gives; TorchScript's exporter renames most weights\n"
    yield NOTES
    yield "| file | opset | nodes | groups | found | error | MACs left | torch plan | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield "| " + " | ".join(map(str, cells(row))) + " |"


def cells(row: Row) -> list[Any]:
    """One line of the table."""
    gone, torch = row.get("dead", {}), row.get("torch", {})
    errors = [gone[key] for key in ("error_all", "error_disabled") if key in gone]
    left = f"{gone['macs_after'] / gone['macs_before']:.2f}" if gone.get("macs_before") else ""
    plan = f"{torch['same']} of {torch['named']}" if "named" in torch else torch.get("error", "")[:60]
    problem = "" if row["status"] == "exact" else f"{row['status']}: {row.get('error', {}).get('message', '')[:160]}"
    found = {True: "yes", False: "no"}.get(row.get("found"), "")
    error = f"{max(errors):.1e}" if errors else ""
    return [row["model"], row.get("opset"), row.get("nodes"), row.get("groups"), found, error, left, plan, problem]


if __name__ == "__main__":
    main()

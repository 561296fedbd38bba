"""Any ONNX file through `graphprune slim`: what both exporters of torch make of public architectures, files of others.

    python benchmarks/onnx/run.py all --folder WORK          # all of the following, one after another
    python benchmarks/onnx/run.py export --folder WORK       # 62 networks, two files each
    python benchmarks/onnx/run.py fetch --folder WORK        # files in packages of others, test data of onnx
    python benchmarks/onnx/run.py check --folder WORK        # every file, each in a process of its own
    python benchmarks/onnx/run.py report --folder WORK       # results/*.json and README.md

Stopped runs go on where they were: a network or file whose row exists is not done again. `fuzz.py` goes with it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "coverage")]

import child  # noqa: E402
from page import page  # noqa: E402
from process import Row, run_child  # noqa: E402
from record import without_folders  # noqa: E402
from results import surroundings  # noqa: E402

from graphprune.formats.files import atomic_write_text  # noqa: E402

Job = tuple[Path, Sequence[str]]
"""Where the row of a network or file is kept, and the arguments of the process that makes it."""

COMMANDS = ("export", "fetch", "check", "report")


def main() -> None:
    """Run a command, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=(*COMMANDS, "all"))
    parser.add_argument("--folder", type=Path, required=True, help="where models and rows are kept")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one process")
    arguments = parser.parse_args()
    for command in COMMANDS if arguments.command == "all" else (arguments.command,):
        start = time.perf_counter()
        run(command, arguments.folder, arguments.limit)
        print(f"{command}: {time.perf_counter() - start:.0f} s", flush=True)


def run(command: str, folder: Path, limit: float) -> None:
    """Run one command."""
    if command == "fetch":
        from files import fetch

        fetch(folder)
    elif command == "report":
        report(folder)
    else:
        if command == "export":
            import exports as libraries  # noqa: F401  # once for all networks: their processes are forks of this one
        work(exports(folder) if command == "export" else checks(folder), folder, limit)


def work(jobs: Iterator[Job], folder: Path, limit: float) -> None:
    """Make the rows that are not there yet."""
    for row, words in jobs:
        if not row.exists():
            row.parent.mkdir(parents=True, exist_ok=True)
            found = run_child([*words, "--folder", str(folder)], limit, 1, child.main)
            atomic_write_text(row, json.dumps(found))
            print(row.stem, found["status"], flush=True)


def exports(folder: Path) -> Iterator[Job]:
    """Every network."""
    from exports import NETWORKS

    for suite, names in NETWORKS.items():
        for name in names:
            yield folder / "rows" / f"{suite}-{name}.json", ("export", suite, name)


def checks(folder: Path) -> Iterator[Job]:
    """Every file, the small ones first."""
    for path in sorted(folder.glob("[dt]*/*/*.onnx"), key=lambda path: path.stat().st_size):
        exporter, suite = path.parts[-3:-1]
        row = folder / "checks" / f"{exporter}-{suite}-{path.stem}.json"
        yield row, ("check", f"{exporter}-{suite}", str(path))
    for path in sorted(folder.glob("files/**/*.onnx"), key=lambda path: path.stat().st_size):
        parts = path.relative_to(folder / "files").with_suffix("").parts
        yield folder / "checks" / "files" / f"{'-'.join(parts)}.json", ("check", parts[0], str(path))


def report(folder: Path) -> None:
    """Write the rows as documents, and README.md from all results."""
    (HERE / "results").mkdir(exist_ok=True)
    for name, pattern in (("exports", "checks/*.json"), ("files", "checks/files/*.json")):
        rows = [json.loads(without_folders(path.read_text())) for path in sorted(folder.glob(pattern))]
        if rows:
            write(HERE / "results" / f"{name}.json", rows)
    atomic_write_text(HERE / "README.md", page(HERE / "results"))


def write(path: Path, rows: Sequence[Row]) -> None:
    """A document: what the rows must be read with, then one row a line."""
    head = json.dumps({"command": "python benchmarks/onnx/run.py all", **surroundings()}, indent=1)
    body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    atomic_write_text(path, f'{head[:-2]},\n "rows": [\n{body}\n ]\n}}\n')


if __name__ == "__main__":
    main()

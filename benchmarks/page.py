"""A README that is written from result files alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphprune.formats.files import atomic_write_text

__all__ = ["Row", "write_page"]

Row = Mapping[str, Any]
Section = tuple[str, str, Callable[[Sequence[Row]], str]]


def write_page(
    folder: Path,
    head: str,
    sections: Iterable[Section],
    machine: Callable[[Mapping[str, Any]], str],
    tail: Iterable[str] = (),
) -> None:
    """Write `README.md` of a folder: of each section whose results/NAME.json there is, its text, machine and table.

    Args:
        folder: that of the benchmark.
        head: what comes first.
        sections: name of the file, what is said of it, and what makes a table of its rows.
        machine: says in a line where it was measured, from the facts in the file.
        tail: what comes last.
    """
    parts = [head]
    for name, text, table in sections:
        path = folder / "results" / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_text())
            others = {row["cpu"] for row in document["rows"] if "cpu" in row} - {document["machine"]["cpu"]}
            also = f" Some rows are of another machine: {', '.join(sorted(others))}." if others else ""
            parts += [text, machine(document["machine"]) + also, table(document["rows"])]
    atomic_write_text(folder / "README.md", "\n\n".join(part.strip() for part in [*parts, *tail]) + "\n")

"""Results on disk: one JSON line for each finished model while a run goes on, one JSON document of all of them."""

import json
import os
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from process import HERE, REPOSITORY, Row

from graphprune.formats.files import atomic_write_text
from graphprune.runtime.machine import machine_facts

RESULTS = HERE / "results"
_DISTRIBUTIONS = ("torch", "torchvision", "timm", "torch-pruning", "numpy", "scipy")


class Results:
    """Rows of one sub-run, each kept as soon as it is there.

    Attributes:
        rows: by key (model, or suite and model), in the order in which they came.
    """

    def __init__(self, name: str, folder: Path = RESULTS, *, resume: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = folder / f"{name}.jsonl"
        self.document = folder / f"{name}.json"
        self.rows: dict[str, Row] = {}
        if resume and self.lines.exists():
            for line in self.lines.read_text().splitlines():
                if line.strip().endswith("}"):  # a line that was cut off is measured again
                    row = json.loads(line)
                    self.rows[row["model"]] = row
        else:
            self.lines.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Keep a row; a later one of the same model takes the place of the earlier."""
        self.rows.pop(row["model"], None)
        self.rows[row["model"]] = row
        with self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write(self, about: Row) -> None:
        """Write the document: what the rows must be read with, then one row a line."""
        rows = sorted(self.rows.values(), key=lambda row: (row["suite"], row["model"]))
        head = json.dumps({**about, **surroundings()}, indent=1)
        body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        atomic_write_text(self.document, f'{head[:-2]},\n "rows": [\n{body}\n ]\n}}\n')


def read(name: str, folder: Path = RESULTS) -> Row | None:
    """The document of a sub-run, or None when it has not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def surroundings() -> dict[str, Any]:
    """Machine, versions, revision and date."""
    return {
        "machine": machine_facts().to_dict(),
        "versions": {name: metadata.version(name) for name in _DISTRIBUTIONS},
        "revision": revision(),
        "date": time.strftime("%Y-%m-%d"),
    }


def revision() -> str:
    """Commit that is measured, with "+changes" when the sources differ from it."""
    git = ["git", "-C", os.fspath(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "passes", "graphprune"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes.returncode else "")

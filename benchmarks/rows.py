"""Result files of benchmarks: rows that are kept as they come, so that a run that was stopped goes on.

A file holds the facts of the machine that wrote it last, and where there are several, every row the name of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphprune.formats.files import atomic_write_json
from graphprune.runtime.machine import machine_facts

__all__ = ["Rows"]


class Rows:
    """The rows of one file, found again by some of their fields."""

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self._path = path
        self._key = key
        document = json.loads(path.read_text()) if path.exists() else {"rows": []}
        self.rows: list[dict[str, Any]] = document["rows"]
        for row in self.rows:
            row.setdefault("cpu", document["machine"]["cpu"])

    def has(self, **fields: Any) -> bool:
        """Whether there is a row with these values of the key's fields."""
        return any(all(row[name] == fields[name] for name in self._key if name in fields) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, in place of one of the same key."""
        same = [old for old in self.rows if all(old[name] == row[name] for name in self._key)]
        machine = machine_facts().to_dict()
        self.rows = [*(old for old in self.rows if old not in same), {**row, "cpu": machine["cpu"]}]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self._path, {"machine": machine, "rows": self.rows})

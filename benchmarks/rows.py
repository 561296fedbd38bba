"""Result files of the latency benchmarks: rows that are kept as they come, so that a run that was stopped goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphprune.files import atomic_write_json
from graphprune.machine import machine_facts

__all__ = ["Rows"]


class Rows:
    """The rows of one file, found again by some of their fields."""

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self._path = path
        self._key = key
        self.rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []

    def has(self, **fields: Any) -> bool:
        """Whether there is a row with these values of the key's fields."""
        return any(all(row[name] == fields[name] for name in self._key if name in fields) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, in place of one of the same key."""
        same = [old for old in self.rows if all(old[name] == row[name] for name in self._key)]
        self.rows = [*(old for old in self.rows if old not in same), dict(row)]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self._path, {"machine": machine_facts().to_dict(), "rows": self.rows})

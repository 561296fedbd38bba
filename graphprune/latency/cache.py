"""Latency models on disk: measured once for a network's shape, a machine, a runtime and a way of running.

They lie in `$GRAPHPRUNE_CACHE`, or `graphprune` in the user's cache folder. An empty GRAPHPRUNE_CACHE
keeps none.
"""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from graphprune.formats.files import atomic_write_json
from graphprune.latency.model import LatencyModel
from graphprune.latency.target import LatencyTarget
from graphprune.passes.errors import GraphPruneError

__all__ = ["cache_folder", "load", "store"]

logger = logging.getLogger("graphprune")

VARIABLE = "GRAPHPRUNE_CACHE"


def cache_folder() -> Path | None:
    """Where measurements are kept; None where the user wants none to be."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "graphprune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "graphprune" / "cache"
    base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(base).expanduser() / "graphprune"


def _file(structure: str, target: LatencyTarget, folder: Path) -> Path:
    key: dict[str, Any] = {"structure": structure, **target.key()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return folder / "latency" / f"{digest}.json"


def load(structure: str, target: LatencyTarget) -> LatencyModel | None:
    """The model that was stored, or None."""
    folder = cache_folder()
    if folder is None:
        return None
    path = _file(structure, target, folder)
    try:
        return LatencyModel.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, GraphPruneError) as error:
        logger.info("%s is not readable and is measured again: %s", path, error)
        return None


def store(model: LatencyModel) -> None:
    """Keep a model; a folder that cannot be written to is no error."""
    folder = cache_folder()
    if folder is None:
        return
    path = _file(model.structure, model.target, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, model.to_dict())
    except (OSError, GraphPruneError) as error:
        logger.info("the latency measurement is not cached: %s", error)

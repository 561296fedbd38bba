"""The folder that a compression writes into.

    OUT/.staging/                                                    files of a run that is not done
    OUT/checkpoint.pt  compress.log  settings.json                   from the start of the training on
    OUT/latency.json                                                 likewise, where the budget is one in latency
    OUT/search.json                                                  what a policy that searches has tried; for the next
                                                                     run, too, however this one ends
    OUT/search.svg                                                   its course, where this run is one that has searched
    OUT/search-macs0.5.json  .svg  and so on                         both for each budget, where several make a family
    OUT/dense.onnx  slim.onnx  slim.pt2  plan.json  metrics.json     renamed at the end; metrics.json comes last
    OUT/slim-macs0.5.onnx  .pt2  .plan.json  and so on               likewise, where several budgets make a family

So a result under its final name is whole, and where metrics.json stands, all of them are of one run. A run that
fails before its training leaves nothing, and what an earlier run left is replaced only when the training begins.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from graphprune.config import BUDGETS
from graphprune.formats.files import atomic_write_json, meant_to_be, remove_half_written
from graphprune.passes.errors import GraphPruneError, ModelLoadError, OutputExistsError, UsageError

__all__ = ["OutputFolder"]

RESULTS = ("dense.onnx", "slim.onnx", "slim.pt2", "plan.json", "metrics.json")
# Of members of a family, and of int8 versions; what else somebody has put there is not ours to remove.
_FAMILY = re.compile(rf"slim(-({'|'.join(BUDGETS)})[\d.e+-]+)*(-\d+)?(-int8)?\.(onnx|pt2|plan\.json)")
CHECKPOINT, LOG, SETTINGS, STAGING = "checkpoint.pt", "compress.log", "settings.json", ".staging"
JOURNAL = "latency.json"
SEARCH, CURVE = "search.json", "search.svg"
_SEARCH = re.compile(rf"search(-({'|'.join(BUDGETS)})[\d.e+-]+)*\.(json|svg)")
# What a run that was killed before its first checkpoint leaves behind; nothing is lost with it.
_LEFTOVERS = frozenset({LOG, SETTINGS, STAGING, JOURNAL})
_ALL_RECORDS = 100_000

_logger = logging.getLogger("graphprune")


class OutputFolder:
    """Where a run puts its files; nothing is created before `open`.

    Args:
        path: the folder; None works in a temporary one and keeps nothing.
        resume: go on from the checkpoint in the folder, or start where a run was killed before its first.
        force: replace what an earlier run has left.

    Raises:
        OutputExistsError: the folder holds something, and neither `resume` nor `force` is set.
        ModelLoadError: there is nothing to resume.
        UsageError: both are set.
    """

    def __init__(self, path: Path | None, *, resume: bool = False, force: bool = False) -> None:
        if resume and path is not None and _only_leftovers(path):
            _logger.warning("%s: the run was stopped before its first checkpoint; it starts from the beginning", path)
            resume = False
        self.path = path
        self.resume = resume
        self._has_begun = False  # what the folder holds is that of this run
        self._log = MemoryHandler(_ALL_RECORDS, flushLevel=logging.CRITICAL + 1)
        if resume and force:
            raise UsageError("`resume` goes on with a run and `force` replaces it: give one of them")
        if path is not None:
            _check_path(path, resume=resume, force=force)
        elif resume:
            raise UsageError("`resume` needs the output folder of the run")

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint file, if the folder is to stay."""
        return None if self.path is None else self.path / CHECKPOINT

    @property
    def journal(self) -> Path | None:
        """The file for measured latencies, if the folder is to stay."""
        return None if self.path is None else self.path / JOURNAL

    @property
    def search(self) -> Path | None:
        """The file for what a search has tried, if the folder is to stay."""
        return None if self.path is None else self.path / SEARCH

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yield the staging folder and keep the log of the block; clean up after it, however it ends."""
        if self.path is None:
            with tempfile.TemporaryDirectory(prefix="graphprune-") as scratch:
                yield Path(scratch)
            return
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        staging = self.path / STAGING
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            remove_half_written(self.path, _is_own)
        except OSError as error:
            raise GraphPruneError(f"{self.path}: cannot be written to ({error.strerror or error})") from error
        try:
            with self._logging():
                try:
                    yield staging
                except KeyboardInterrupt:
                    if self._has_begun and (self.path / CHECKPOINT).exists():
                        _logger.warning("stopped; the same again with `resume=True` goes on with it")
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if self._has_begun and not (self.path / CHECKPOINT).exists():
                for name in (LOG, SETTINGS, JOURNAL):
                    (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # there is something in it
                for folder in missing:
                    folder.rmdir()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Do nothing unless a run is resumed with other settings.

        Args:
            settings: what a continued run must share with the first, beyond what the checkpoint itself knows.

        Raises:
            UsageError: the run to resume had other settings.
        """
        if self.path is not None and self.resume:
            _check_settings(self.path / SETTINGS, settings)

    def begin(self, settings: Mapping[str, Any], *, has_searched: bool = False) -> None:
        """Replace what an earlier run has left, and write the log into the folder from now on.

        Called when all that can fail without training has been done: until then the earlier results are the only ones.

        Args:
            settings: see `check`.
            has_searched: the curve of a search that is in the folder is this run's.
        """
        if self.path is None:
            return
        self._has_begun = True
        if not self.resume:
            # metrics.json goes first: it says that the others are whole and belong together.
            family = [file.name for file in sorted(self.path.iterdir()) if _FAMILY.fullmatch(file.name)]
            names = [entry.name for entry in self.path.iterdir() if _SEARCH.fullmatch(entry.name)]
            curve = () if has_searched else [name for name in names if name.endswith(".svg")]
            for name in (*reversed(RESULTS), *family, CHECKPOINT, LOG, JOURNAL, *curve):
                (self.path / name).unlink(missing_ok=True)
            atomic_write_json(self.path / SETTINGS, settings)
        handler = _LogFile(self.path / LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.setLevel(logging.INFO)
        self._log.setTarget(handler)
        self._log.flush()
        self._log.flushLevel = logging.NOTSET  # from now on every record at once: the run may be killed

    def commit(self, staging: Path) -> None:
        """Give the files in the staging folder their final names."""
        if self.path is None:
            return
        last = RESULTS[-1]
        (self.path / last).unlink(missing_ok=True)
        for result in sorted(staging.iterdir(), key=lambda file: (file.name == last, file.name)):
            result.replace(self.path / result.name)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        self._log.setLevel(logging.INFO)
        level = _logger.level
        if not _logger.isEnabledFor(logging.INFO):
            _logger.setLevel(logging.INFO)
        _logger.addHandler(self._log)
        try:
            yield
        finally:
            _logger.removeHandler(self._log)
            _logger.setLevel(level)
            target = self._log.target
            for handler in (self._log, target):
                with suppress(OSError):  # a full disk: what the block has to say of it comes first
                    if handler is not None:
                        handler.close()


class _LogFile(logging.FileHandler):
    """A log that cannot be written is no reason to stop, nor to say so at every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing."""


def _only_leftovers(path: Path) -> bool:
    """Is the folder what a run leaves that was killed before its first checkpoint?"""
    held = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return bool(held) and all(map(_is_leftover, held))


def _is_leftover(name: str) -> bool:
    return _is_own(meant_to_be(name)) and name != CHECKPOINT


def _is_own(name: str) -> bool:
    return name in _LEFTOVERS or name == CHECKPOINT or _SEARCH.fullmatch(name) is not None


def _check_path(path: Path, *, resume: bool, force: bool) -> None:
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"{path}: this is a file; the output is a folder, choose another name")
    if resume and not (path / CHECKPOINT).exists():
        raise ModelLoadError(f"{path}: there is no checkpoint to resume from; start without `resume`")
    if resume or force or not path.is_dir():
        return
    held = sorted(entry.name for entry in path.iterdir() if not _is_leftover(entry.name))
    if held:
        hint = "go on with `resume=True`, " if CHECKPOINT in held else ""
        more = ", ..." if len(held) > 3 else ""
        raise OutputExistsError(
            f"{path}: this folder is not empty (it has {', '.join(held[:3])}{more}); choose another, {hint}or replace "
            "the results in it with `force=True`"
        )


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: not readable, so the run cannot be resumed; start afresh") from error
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"cannot resume: the {name} was {before.get(name)} and is now {value}; use the same settings or start "
                "afresh"
            )

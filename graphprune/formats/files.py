"""Writing files so that a final name never holds a half-written file.

A file is written under a temporary name in the folder it will live in, flushed to the disk, and renamed.
A rename within one folder is atomic, so a reader sees the old file or the new one and nothing between.
"""

import errno
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graphprune.passes.errors import GraphPruneError, OutputExistsError

__all__ = [
    "atomic_write",
    "atomic_write_json",
    "atomic_write_text",
    "atomic_write_through_memory",
    "atomic_write_together",
    "meant_to_be",
    "refuse_overwrite",
    "remove_half_written",
    "write_error",
]

_TOKEN = 4  # bytes
# A writer may look at the suffix, so the temporary name keeps it; the dot hides it from globs.
_TEMPORARY = re.compile(rf"\.(?P<stem>.+)\.[0-9a-f]{{{2 * _TOKEN}}}(?P<suffix>\.[^.]*)?")
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    The folder is created when it does not exist. Whatever ends the block early - an error, Ctrl-C - leaves
    an existing file under `path` as it was, and no temporary file behind.

    Raises:
        GraphPruneError: The file cannot be written (disk full, no permission, a folder in its place).

    Example:
        >>> with atomic_write("plan.json") as temporary:     # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    with atomic_write_together(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_write_together(*paths: str | os.PathLike[str]) -> Iterator[tuple[Path, ...]]:
    """As `atomic_write`, for files of which the last refers to the others.

    All are on the disk before the first name changes. The last one's name is then freed before the others get theirs,
    so that whoever is stopped in between leaves no file that refers to another one's contents.

    Raises:
        GraphPruneError: A file cannot be written (disk full, no permission, a folder in its place).
    """
    finals = [Path(path) for path in paths]
    temporaries = [path.with_name(f".{path.stem}.{secrets.token_hex(_TOKEN)}{path.suffix}") for path in finals]
    try:
        for final in finals:
            final.parent.mkdir(parents=True, exist_ok=True)
        yield tuple(temporaries)
        for temporary in temporaries:
            _flush_to_disk(temporary)
        if len(finals) > 1:
            finals[-1].unlink(missing_ok=True)
        for temporary, final in zip(temporaries, finals, strict=True):
            temporary.replace(final)
        _flush_folder(finals[-1].parent)
    except OSError as error:
        if not _is_about(error, (*temporaries, *finals)):
            raise
        raise write_error(error, finals[-1]) from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def meant_to_be(name: str) -> str:
    """What a file was to be called in the end, of which a process that was killed has left the half; else its name."""
    temporary = _TEMPORARY.fullmatch(name)
    return name if temporary is None else f"{temporary['stem']}{temporary['suffix'] or ''}"


def remove_half_written(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what processes that were killed while writing have left in a folder.

    Args:
        folder: where to look.
        is_ours: of the name that a file was to have, whether it is one to remove.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        if meant_to_be(entry.name) != entry.name and is_ours(meant_to_be(entry.name)):
            entry.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 under `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON under `path`, whole or not at all.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON has no words for.
    """
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def atomic_write_through_memory(path: str | os.PathLike[str], write: Callable[[io.BytesIO], object]) -> None:
    """Write what `write` puts into a file in memory under `path`, whole or not at all.

    For writers that do not survive a full disk: torch's ends the process, in the middle of an archive.
    """
    buffer = io.BytesIO()
    write(buffer)
    with atomic_write(path) as temporary, temporary.open("wb") as handle:
        handle.write(buffer.getbuffer())


def refuse_overwrite(path: str | os.PathLike[str], force: bool = False) -> None:
    """Do nothing when `path` is free, or when `force` allows to replace what is there.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
    """
    if not force and os.path.lexists(path):
        kind = "folder" if Path(path).is_dir() else "file"
        raise OutputExistsError(
            f"{path}: this {kind} exists already; choose another name, or replace it with `force=True`"
        )


def _is_about(error: OSError, files: Iterable[Path]) -> bool:
    """Whether an error of the block or of this module is about the files being written.

    The block may read other files; their errors are the caller's. A write that fails for want of space
    carries no file name.
    """
    if error.errno in _DISK_FULL or error.filename is None:
        return error.errno in _DISK_FULL
    ours = {os.fspath(path) for file in files for path in (file, *file.parents)}
    return os.fspath(error.filename) in ours


def write_error(error: OSError, final: Path) -> GraphPruneError:
    """What to tell a user who cannot write a file."""
    if error.errno in _DISK_FULL:
        return GraphPruneError(f"{final}: the disk is full; free some space or write elsewhere")
    return GraphPruneError(f"{final}: cannot be written ({error.strerror or error})")


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    # Makes the rename itself durable. Folders cannot be opened on Windows, and some file systems refuse.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

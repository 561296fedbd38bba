"""Libraries that print past Python's own stdout, where JSON may be expected."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["nothing_printed"]


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Drop what is written to file descriptor 1 meanwhile, by any thread; without one, nothing is done."""
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError, AttributeError):  # closed, or there is none
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        _flush()
        os.dup2(sink, 1)
        yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)


def _flush() -> None:
    """Have C write out what it has buffered."""
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.fflush(None)

"""Keeping threads on the processors they start on: a thread that is moved finds cold caches, and times scatter.

The processors chosen are the quietest ones, one to a physical core as far as they reach, since two hyper-threads of a
core share what is to be measured. Only where the system can do it (Linux).
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["pinned", "quietest", "worker_affinities"]

_LOOK_SECONDS = 0.1
_STAT = Path("/proc/stat")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def quietest(count: int) -> tuple[int, ...] | None:
    """Processors for so many threads, of those this process may use; None where threads cannot be kept in place."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if count > len(allowed):
        return None
    if count == len(allowed):
        return tuple(allowed)
    idle = _idle_seconds(allowed)
    # The first processors of a machine get most of its interrupts, so the last ones win a tie.
    order = sorted(allowed, key=lambda cpu: (round(idle.get(cpu, 0.0), 2), cpu), reverse=True)
    firsts: list[int] = []
    seconds: list[int] = []
    cores: set[str] = set()
    for cpu in order:
        core = _core_of(cpu)
        (seconds if core in cores else firsts).append(cpu)
        cores.add(core)
    return tuple([*firsts, *seconds][:count])


@contextmanager
def pinned(processors: Sequence[int] | None) -> Iterator[None]:
    """Keep the calling thread on these processors inside the block; does nothing for None."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(processors))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def worker_affinities(processors: Sequence[int]) -> str:
    """Onnxruntime's spelling of where its workers go; the first processor is the calling thread's.

    Example:
        >>> worker_affinities((4, 5, 6))
        '6;7'
    """
    return ";".join(str(cpu + 1) for cpu in processors[1:])  # it counts from 1


def _idle_seconds(allowed: Sequence[int]) -> dict[int, float]:
    """How long each processor had nothing to do during a short look."""
    before = _idle_ticks()
    time.sleep(_LOOK_SECONDS)
    after = _idle_ticks()
    return {cpu: (after.get(cpu, 0) - before.get(cpu, 0)) / 100 for cpu in allowed}


def _idle_ticks() -> dict[int, int]:
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) for row in rows if len(row) > 4}


def _core_of(cpu: int) -> str:
    try:
        return Path(_SIBLINGS.format(cpu)).read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)

"""Keeping threads on the processors they start on: a thread that is moved finds cold caches, and times scatter.

The processors chosen are the quietest ones, one to a physical core as far as they reach, since two hyper-threads of a
core share what is to be measured. What else these were busy with meanwhile can be asked. Only where the system can do
it (Linux).
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["OtherWork", "pinned", "quietest", "worker_affinities"]

logger = logging.getLogger("graphprune")

_LOOK_SECONDS = 0.1
# The system counts in steps of 10 ms.
_TELLING_SECONDS = 0.5
# user, nice, system, irq, softirq, steal; idle and iowait stand between them, guests are part of the first two.
_BUSY = (1, 2, 3, 6, 7, 8)
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
    """Keep the calling thread on these processors inside the block; does nothing for None.

    Where the system has taken them away since they were chosen, the thread runs wherever it may, with a warning.
    """
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, set(processors))
    except OSError:
        logger.warning("processors %s cannot be had any more: the times may vary more", ", ".join(map(str, processors)))
    try:
        yield
    finally:
        with suppress(OSError):  # of processors that are gone as well: the system has put the thread elsewhere
            os.sched_setaffinity(0, before)


def worker_affinities(processors: Sequence[int]) -> str:
    """Onnxruntime's spelling of where its workers go; the first processor is the calling thread's.

    Example:
        >>> worker_affinities((4, 5, 6))
        '6;7'
    """
    return ";".join(str(cpu + 1) for cpu in processors[1:])  # it counts from 1


class OtherWork:
    """What processors do besides this process, from here on.

    All threads of the process count as its own, so workers that spin while they wait are no other work.
    """

    def __init__(self, processors: Sequence[int] | None) -> None:
        self._processors = processors
        self._start = self._now()

    def share(self) -> float | None:
        """Share of the processors' time that went to others; None where the system does not tell, or too soon."""
        if self._processors is None or self._start is None or (now := self._now()) is None:
            return None
        busy, own, passed = (after - before for after, before in zip(now, self._start, strict=True))
        # In a sandbox the numbers may be made up.
        if passed < _TELLING_SECONDS or busy < own / 2:
            return None
        return min(1.0, max(0.0, (busy - own) / (passed * len(self._processors))))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds that the processors were busy, those of this process, and the time."""
        rows = [row for cpu, row in _rows().items() if self._processors is not None and cpu in self._processors]
        if not rows or any(len(row) <= _BUSY[-1] for row in rows):
            return None
        ticks = sum(int(row[at]) for row in rows for at in _BUSY)
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def _idle_seconds(allowed: Sequence[int]) -> dict[int, float]:
    """How long each processor had nothing to do during a short look."""
    before = _idle_ticks()
    time.sleep(_LOOK_SECONDS)
    after = _idle_ticks()
    return {cpu: (after.get(cpu, 0) - before.get(cpu, 0)) / 100 for cpu in allowed}


def _idle_ticks() -> dict[int, int]:
    return {cpu: int(row[4]) for cpu, row in _rows().items() if len(row) > 4}


def _rows() -> dict[int, list[str]]:
    """The system's counts for each processor."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): row for row in rows}


def _core_of(cpu: int) -> str:
    try:
        return Path(_SIBLINGS.format(cpu)).read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)

"""How a long run shows that it goes on: a bar on a terminal, a line now and then in a file or a pipe. All on stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from graphprune.compress import Reporter
    from graphprune.search import Trial

__all__ = ["progress"]

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(*, quiet: bool = False) -> Iterator["Reporter | None"]:
    """Yield a reporter for stderr, or None if nothing is to be said."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as reporter:
            yield reporter
    else:
        yield _Lines()


class _Lines:
    """Says when a part begins, and during the training how long it will take, at most twice a minute."""

    def __init__(self) -> None:
        self._start = self._said = time.monotonic()
        self._first: int | None = None
        self._last = 0

    def stage(self, name: str) -> None:
        click.echo(f"{name} ...", err=True)
        self._first = None

    def images(self, done: int, total: int) -> None:
        self._every_so_often(done, total, "")

    def part(self, done: int, total: int) -> None:
        self._every_so_often(done, total, "")

    def evaluation(self, done: int, total: int, best: "Trial") -> None:
        self._every_so_often(done, total, _describe_trial(best))

    def step(self, step: int, total: int, loss: float, cost: dict[str, float], phase: str) -> None:
        self._every_so_often(step, total, _describe(loss, cost, phase))

    def _every_so_often(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        # A resumed run does not begin at 0, and a stage may count more than once: two folders, searches of a family.
        if self._first is None or done <= self._last:
            self._first, self._start, self._said = done, now, now
        elif now - self._said >= _SECONDS_BETWEEN_LINES and done < total:
            left = (now - self._start) / (done - self._first) * (total - done)
            click.echo(
                f"  {', '.join(filter(None, (f'{done} of {total}', text)))}, about {_duration(left)} left", err=True
            )
            self._said = now
        self._last = done


@contextmanager
def _bars() -> Iterator["Reporter"]:
    from rich import progress as rich_progress
    from rich.console import Console

    # The log must go through the same console, or its lines would run into the bar.
    handlers = logging.getLogger("graphprune").handlers
    console = next((h.console for h in handlers if hasattr(h, "console")), None) or Console(stderr=True)
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[detail]}"),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar, for the part of the work under way."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None, detail="")

    def stage(self, name: str) -> None:
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=None, detail="")

    def images(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total, detail=f"{done}/{total}")

    def part(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total, detail=f"{done}/{total}")

    def evaluation(self, done: int, total: int, best: "Trial") -> None:
        self._bars.update(self._task, completed=done, total=total, detail=f"{done}/{total} {_describe_trial(best)}")

    def step(self, step: int, total: int, loss: float, cost: dict[str, float], phase: str) -> None:
        self._bars.update(
            self._task, completed=step, total=total, detail=f"{step}/{total} {_describe(loss, cost, phase)}"
        )


def _describe(loss: float, cost: dict[str, float], phase: str) -> str:
    shares = ", ".join(f"{unit} {share:.3f}" for unit, share in cost.items())
    return f"{phase}, loss {loss:.3f}, {shares}"


def _describe_trial(best: "Trial") -> str:
    worth = f"distance {best.distance:.3f}" if best.agreement is None else f"agreement {best.agreement:.4f}"
    return f"best so far: {worth}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"

"""Tables and numbers of the reports: plain text for a file or a pipe, in the console's colors on a terminal."""

from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["milliseconds", "new_table", "rendered", "three_digits", "times"]


def new_table(headers: Sequence[str], left: Sequence[int] = (0,)) -> Table:
    """A table without rows; columns `left` are words, as is a last one without a header, the others are numbers."""
    table = Table(box=box.MARKDOWN, show_edge=True, pad_edge=True)
    for at, header in enumerate(headers):
        is_verdict = at == len(headers) - 1 and not header
        table.add_column(header, justify="left" if at in left or is_verdict else "right", overflow="fold")
    return table


def rendered(table: Table, notes: Sequence[str], console: Console | None) -> str:
    """Return table and notes as text; with a console, print them there as well."""
    if console is not None:
        console.print(table)
        for note in notes:
            console.print(note, style="dim", highlight=False, markup=False)
    # As wide as the content asks for: a pipe has no width that would justify a cut.
    plain = Console(file=StringIO(), width=10_000, color_system=None, force_terminal=False)
    with plain.capture() as captured:
        plain.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def three_digits(value: float) -> str:
    """Return a number with three significant digits: 1.23, 12.3, 123."""
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 99.95 else f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def milliseconds(value: float) -> str:
    """Return a time: 0.123 ms, 1.23 ms."""
    return f"{value:.3f} ms" if value < 1 else f"{three_digits(value)} ms"


def times(value: float) -> str:
    """Return a ratio: 1.23x."""
    return f"{value:.2f}x"

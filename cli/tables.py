"""Tables of the commands, in the look of `graphprune.report`: plain text for a pipe, rich on a terminal."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

__all__ = ["render_table"]


def render_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], console: Any = None, *, left: Sequence[int] = (0,)
) -> str:
    """Return a table as text; with a console, print it there as well.

    Args:
        headers: of the columns.
        rows: cells.
        console: a rich console.
        left: columns that are words and stand at the left; the others are numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN, show_edge=True, pad_edge=True)
    for at, header in enumerate(headers):
        table.add_column(header, justify="left" if at in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if console is not None:
        console.print(table)
    # As wide as the content asks for: a pipe has no width that would justify a cut.
    plain = Console(file=StringIO(), width=10_000, color_system=None, force_terminal=False)
    with plain.capture() as captured:
        plain.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip()) + "\n"

"""What a command says: its result, and only that, on stdout."""

import json
import sys
from collections.abc import Callable
from typing import Any

import click

__all__ = ["print_json", "print_text"]


def print_json(result: Any) -> None:
    """Print the result for a program to read."""
    click.echo(json.dumps(result, indent=2, allow_nan=False))


def print_text(render: Callable[..., str], subject: Any) -> None:
    """Print the result for a person: `render(subject, console)` on a terminal, its plain text elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        render(subject, Console())
    else:
        click.echo(render(subject), nl=False)

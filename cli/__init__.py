"""The command line: `graphprune COMMAND`, one module a command."""

from graphprune.cli.main import main

__all__ = ["main"]

"""The frame of the command line: finds the command, sets up the log, and turns errors into lines and exit codes.

Exit codes: 0 done, 1 error, 2 usage, 3 unsupported model, 4 verification failed, 5 budget not reached,
130 interrupted. Commands are imported when they are called, so that `--help` needs neither torch nor onnx.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from graphprune.cli.options import RunState, run_options, take_down_log
from graphprune.cli.spelling import as_options
from graphprune.passes.errors import GraphPruneError
from graphprune.version import __version__

__all__ = ["main"]

INTERRUPTED = 130
PIPE_CLOSED = 141

# Command -> what `graphprune --help` says of it. The module of the same name holds it as `command`.
COMMANDS = {
    "compress": "Make a trained network smaller and faster, from images alone.",
    "inspect": "Show what can be removed from a network, and what cannot and why.",
    "slim": "Remove dead or planned channels from an ONNX file.",
    "quantize": "Write an int8 version of an ONNX file, calibrated on images.",
    "verify": "Check that two models compute the same.",
    "benchmark": "Measure ONNX files against each other on this machine.",
    "demo": "Train, compress and measure a small network, in about two minutes.",
}


class CommandGroup(click.Group):
    """A group whose commands are imported on first use and all take the options of `run_options`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's way through them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"graphprune.cli.{cmd_name}").command
        present = {parameter.name for parameter in command.params}
        new = [option for option in run_options() if option.name not in present]
        command.params.extend(new)
        # A command whose help has sections keeps a list of its own of the options that are in none.
        getattr(command, "ungrouped_options", []).extend(new)
        ctx.ensure_object(RunState).options = command.params
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click would end on in its own way goes past it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error
        except BrokenPipeError as error:
            raise _PipeClosed from error


class _Interrupted(Exception):
    """The user pressed Ctrl-C."""


class _PipeClosed(Exception):
    """Whoever read our output has left (`| head`)."""


@click.command(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="graphprune COMMAND --help says more of each.",
)
@click.version_option(__version__, prog_name="graphprune", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Make a trained CNN faster on CPUs, from unlabelled images alone."""
    ctx.ensure_object(RunState).set_up_log()


group.params.extend(run_options())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `args` are those after the program's name."""
    state = RunState()
    try:
        code = _run(args, state)
        # What is still in the buffer may meet a closed pipe, too.
        sys.stdout.flush()
    except (_PipeClosed, BrokenPipeError):
        # Nobody is there to be told; and Python's own flush at exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    finally:
        take_down_log()
    return code


def _run(args: Sequence[str] | None, state: RunState) -> int:
    try:
        # Not standalone: the result is an exit code only when a command calls `ctx.exit(code)`.
        result = group.main(None if args is None else list(args), "graphprune", standalone_mode=False, obj=state)
    except GraphPruneError as error:
        return _fail(f"error: {as_options(str(error), state.options)}", error.exit_code, state)
    except click.UsageError as error:
        return _usage(error, state)
    except click.ClickException as error:
        return _fail(f"error: {error.format_message()}", error.exit_code, state)
    except (_Interrupted, click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED, state)
    except _PipeClosed:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror or error}", 1, state)
    except Exception as error:  # A defect of ours: still one line, and the way to the rest.
        hint = "" if state.debug else "; run again with --debug for the traceback"
        return _fail(f"error: unexpected {type(error).__name__}: {error}{hint}", 1, state)
    return result if isinstance(result, int) else 0


def _usage(error: click.UsageError, state: RunState) -> int:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # Click 8.2 and later.
        error.show()
        return error.exit_code
    command = error.ctx.command_path if error.ctx is not None else "graphprune"
    return _fail(f"error: {error.format_message()} (see {command} --help)", error.exit_code, state)


def _fail(message: str, code: int, state: RunState) -> int:
    if state.debug:
        traceback.print_exc()
    # Exactly one line, whatever a library put into its message.
    click.echo(" ".join(message.split()), err=True)
    return code

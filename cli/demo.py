"""`graphprune demo`: the whole way of a user, on real data, in about two minutes."""

from pathlib import Path

import click

from graphprune.cli.compress import say_files
from graphprune.cli.options import RunState, force_option, json_option
from graphprune.cli.output import print_json, print_text
from graphprune.cli.progress import progress

__all__ = ["command"]


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("graphprune-demo"),
    show_default=True,
    help="Folder for model, images and results.",
)
@force_option
@json_option
@click.pass_context
def command(ctx: click.Context, output: Path, force: bool, as_json: bool) -> None:
    """Train a small network on handwritten digits, compress it without labels, and measure both.

    The digits are real ones, embedded in scikit-learn. Model and images are written as files first, so that the
    compression runs as it would for you; the command for it is said at the end.
    """
    from graphprune.demo import command_line, demonstrate
    from graphprune.report.summary import render_metrics

    with progress(quiet=ctx.ensure_object(RunState).quiet) as reporter:
        result = demonstrate(output, force=force, reporter=reporter)
    if as_json:
        print_json(result.metrics)
        return
    print_text(render_metrics, result.metrics)
    assert result.output is not None
    say_files(result.output)
    click.echo(f"\nThe same by hand:\n  {command_line(output)}")

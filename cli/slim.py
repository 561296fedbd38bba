"""`graphprune slim IN.onnx OUT.onnx`: remove dead or planned channels from an ONNX file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import force_option, json_option, shape_option
from graphprune.cli.output import print_json, print_text
from graphprune.cli.tables import render_table
from graphprune.passes.errors import ModelLoadError

if TYPE_CHECKING:
    from graphprune.slimming import SlimReport

__all__ = ["command"]

SCHEMA = 1


@click.command("slim")
@click.argument("source", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.onnx")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Remove these channels (a plan.json).")
@shape_option
@force_option
@json_option
def command(
    source: Path,
    target: Path,
    plan_file: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    force: bool,
    as_json: bool,
) -> None:
    """Remove dead channels from an ONNX file, whatever tool made them zero; or those of a plan.

    A channel is dead when nothing it carries can reach an output: its weights are zero, or everybody who reads it
    multiplies by zero. OUT.onnx computes what IN.onnx does, or what it does with the planned channels at zero; this is
    checked before it is written.
    """
    from graphprune.slimming import slim_onnx

    for path in (source, target):
        if path.suffix.lower() != ".onnx":
            raise ModelLoadError(f"{path}: not an .onnx file; `graphprune compress` takes torch models")
    report = slim_onnx(source, target, plan_file, shapes=shapes, force=force)
    if as_json:
        print_json({"schema": SCHEMA, "output": str(target), **report.to_dict()})
        return
    print_text(_render, report)
    click.echo(f"\n{target}")


def _render(report: "SlimReport", console: Any = None) -> str:
    from graphprune.report import count, size

    pairs = (
        ("MACs", count, report.macs_before, report.macs_after),
        ("parameters", count, report.params_before, report.params_after),
        ("file size", size, report.bytes_before, report.bytes_after),
    )
    rows = [
        (name, text(before), text(after), f"{(after / before - 1) * 100:+.1f} %" if before else "")
        for name, text, before, after in pairs
    ]
    notes = [
        f"{report.removed_channels} channels of layers removed, in {report.removed_groups} groups; the largest "
        f"difference of an output is {report.max_error:.1e} of its scale"
        if report.removed_groups
        else "there is nothing to remove: no channel is dead",
        *(f"no rule for {name} ({times} times): its channels stay" for name, times in report.unknown_operators.items()),
    ]
    text = render_table(("", "before", "after", "change"), rows, console)
    if console is not None:
        for note in notes:
            console.print(note, style="dim", highlight=False, markup=False)
    return text + "\n" + "\n".join(notes) + "\n"

"""`graphprune slim IN.onnx OUT.onnx`: remove dead, planned or unimportant channels from an ONNX file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import (
    CPU,
    Align,
    force_option,
    inputs_option,
    json_option,
    provider_option,
    seed_option,
    shape_option,
)
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import ModelLoadError, UsageError

if TYPE_CHECKING:
    from graphprune.latency.target import LatencyTarget
    from graphprune.slimming import SlimReport

__all__ = ["command"]

SCHEMA = 1
_GOALS = ("ratio", "macs", "params", "speedup", "latency_ms")
_HOW = ("importance", "align", "allow_inexact")

_share = click.FloatRange(min=0, max=1, min_open=True, max_open=True)


@click.command("slim")
@click.argument("source", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.onnx")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Remove these channels (a plan.json).")
@click.option("--ratio", type=_share, help="Remove at most this share of the channels of every layer.")
@click.option("--macs", type=_share, help="Leave this share of the multiply-accumulates.")
@click.option("--params", type=_share, help="Leave this share of the parameters.")
@click.option("--speedup", type=click.FloatRange(min=1, min_open=True), help="Be so many times faster here, measured.")
@click.option(
    "--latency-ms", type=click.FloatRange(min=0, min_open=True), help="Take so many milliseconds a run, measured."
)
@click.option("--benchmark-threads", type=click.IntRange(min=1), help="To measure with. Default: 1.")
@click.option(
    "--benchmark-batch", type=click.IntRange(min=1), help="Likewise. Default: that of IN.onnx or --shape, else 1."
)
@provider_option
@click.option("--importance", help="Which channels go first: l2, l1 or random. Default: l2.")
@click.option(
    "--align", type=Align(), help="Keep multiples of so many channels; auto: widths that are quick on this machine."
)
@click.option("--allow-inexact", is_flag=True, help="Also remove channels that statistics over channels depend on.")
@click.option(
    "--freeze", multiple=True, metavar="GLOB", help="Layers that keep all their channels: layer1.*. Can be repeated."
)
@inputs_option
@shape_option
@seed_option
@force_option
@json_option
def command(
    source: Path,
    target: Path,
    plan_file: Path | None,
    inputs: Path | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    benchmark_threads: int | None,
    benchmark_batch: int | None,
    provider: str,
    force: bool,
    as_json: bool,
    **choice: Any,
) -> None:
    """Remove dead channels from an ONNX file, whatever tool made them zero; or those of a plan, or the least important.

    A channel is dead when nothing it carries can reach an output: its weights are zero, or everybody who reads it
    multiplies by zero. OUT.onnx computes what IN.onnx does, or what it does with the channels that were chosen at zero;
    this is checked on random inputs, and on those of --inputs, before it is written. Exit code 4 says that it failed.

    With --ratio or a budget (--macs, --params, --speedup, --latency-ms), channels are chosen by their weights alone and
    nothing is trained afterwards: a first look, or a start for training elsewhere. `graphprune compress` keeps what the
    model can do.
    """
    from graphprune.formats.input_arrays import read_inputs
    from graphprune.runtime.onnx_session import require_provider
    from graphprune.slimming import slim_onnx

    for path in (source, target):
        if path.suffix.lower() != ".onnx":
            raise ModelLoadError(
                f"{path}: a folder, and not an .onnx file"
                if path.is_dir()
                else f"{path}: not an .onnx file; `graphprune compress` takes torch models"
            )
    require_provider(provider)
    choice = _without_unset(choice)
    arrays = None if inputs is None else read_inputs(inputs, source)
    way = _way(source, shapes, benchmark_threads, benchmark_batch, provider) if _is_measured(choice) else None
    if way is None and (benchmark_threads or benchmark_batch or provider != CPU):
        raise UsageError(
            "--benchmark-threads, --benchmark-batch and --provider say how a latency is measured, and none is: give "
            "--speedup, --latency-ms, or --align auto with a budget; `graphprune benchmark` measures files"
        )
    report = slim_onnx(
        source, target, plan_file, inputs=arrays, shapes=shapes, force=force, latency_target=way, **choice
    )
    if as_json:
        print_json({"schema": SCHEMA, "output": str(target), **report.to_dict()})
        return
    print_text(_render, report)
    click.echo(f"\n{target}")


def _is_measured(choice: Mapping[str, Any]) -> bool:
    """Whether channels are chosen by latencies."""
    return bool(choice.keys() & {"speedup", "latency_ms"}) or (choice.get("align") == "auto" and "ratio" not in choice)


def _way(
    source: Path, shapes: Mapping[str, tuple[int, ...]] | None, threads: int | None, batch: int | None, provider: str
) -> "LatencyTarget":
    """How the file will be run.

    Raises:
        UsageError: the file, --shape and --benchmark-batch contradict each other.
    """
    from graphprune.latency.target import LatencyTarget
    from graphprune.runtime.onnx_inputs import batch_of, input_specs
    from graphprune.runtime.onnx_session import open_session

    specs = input_specs(open_session(source, optimize=False, mapped=True), str(source))
    batch = batch_of(specs, batch=batch, shapes=shapes, name=str(source))
    return LatencyTarget(threads=threads or 1, batch=batch, provider=provider)


def _without_unset(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        UsageError: one of them says how to choose channels, and nothing is to be chosen.
    """
    given = {name: value for name, value in choice.items() if value not in (None, False, ())}
    how = next((name for name in _HOW if name in given), None)
    if how is not None and not given.keys() & {*_GOALS}:
        goals = ", ".join(f"--{name.replace('_', '-')}" for name in _GOALS)
        raise UsageError(f"--{how.replace('_', '-')} says how channels are chosen: give one of {goals} with it")
    return given


def _removed(report: "SlimReport") -> str:
    said = f"output channels of layers removed: {report.removed_channels}, in groups: {report.removed_groups}"
    if report.max_error is None:
        return said
    part = f", without {report.inexact_groups} of these groups," if report.inexact_groups else ""
    return f"{said}; the largest difference of an output{part} is {report.max_error:.1e} of its scale"


def _render(report: "SlimReport", console: Any = None) -> str:
    from graphprune.report.summary import count, size, some_of
    from graphprune.report.tables import new_table, rendered

    pairs = (
        ("MACs", count, report.macs_before, report.macs_after),
        ("parameters", count, report.params_before, report.params_after),
        ("file size", size, report.bytes_before, report.bytes_after),
    )
    table = new_table(("", "before", "after", "change"))
    for name, text, before, after in pairs:
        table.add_row(name, text(before), text(after), f"{(after / before - 1) * 100:+.1f} %" if before else "")
    notes = [
        _removed(report) if report.removed_groups else report.nothing,
        *(f"no rule for {name} ({times} times): its channels stay" for name, times in report.unknown_operators.items()),
    ]
    if any(name.startswith("com.microsoft.") for name in report.unknown_operators):
        notes.append("operators of com.microsoft are onnxruntime's own: of a file that it optimized, slim the original")
    if report.replaceable:
        notes.append(
            f"{report.replaceable} weights are inputs of the graph as well, so whoever runs it may replace them, and "
            "their channels stay: take them off its inputs first"
        )
    notes += report.not_compared
    if report.uncounted:
        notes.append(f"not in the MACs: {some_of(report.uncounted)}")
    if report.missing_tensors:
        notes.append(
            f"{report.missing_tensors} tensors that the plan cuts are not in this file under their name and size; "
            "channels that they alone name have stayed"
        )
    return rendered(table, notes, console)

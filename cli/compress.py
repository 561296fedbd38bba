"""`graphprune compress MODEL --data DIR --macs 0.5 -o OUT/`: the main job."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import cloup

from graphprune.cli.compress_options import compress_options
from graphprune.cli.options import RunState
from graphprune.cli.output import print_json, print_text
from graphprune.cli.progress import progress
from graphprune.config import CompressConfig
from graphprune.passes.errors import MissedBudgetError, UnfinishedError, UsageError

if TYPE_CHECKING:
    from graphprune.compress import CompressResult

__all__ = ["command", "say_files", "with_missed"]

_FILES = {
    "slim.onnx": "the slim model",
    "dense.onnx": "the model as it came, for comparison",
    "slim.pt2": 'the slim model for PyTorch: graphprune.load("{}")',
    "plan.json": "the channels that went",
    "latency.json": "how long every layer takes at which width on this machine",
    "search.svg": "the course of the search: reward of every evaluation",
    "metrics.json": "everything measured, with settings and versions",
}
_SOMETIMES = (".json", ".svg", ".pt2")  # how names of files end that some runs do not write
_INT8 = "-int8.onnx"  # how those end


@cloup.command("compress")
@click.argument("model", type=click.Path(path_type=Path))
@compress_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    data: Path,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | tuple[int, int] | None,
    eval_data: Path | None,
    metric: str | None,
    limit: int | None,
    channels: str | None,
    arch: str | None,
    entry: str | None,
    trust_pickle: bool,
    macs: float | tuple[float, ...] | None,
    params: float | tuple[float, ...] | None,
    speedup: float | tuple[float, ...] | None,
    latency_ms: float | tuple[float, ...] | None,
    output: Path,
    benchmark_seconds: float,
    benchmark_threads: int,
    benchmark_batch: int,
    provider: str,
    quantize: str | None,
    min_agreement: float,
    resume: bool,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a trained network smaller and faster, from images alone: no labels, no training code.

    MODEL is an .onnx file, a .pt2 archive, or a state dict or checkpoint (.safetensors, .pt, .ckpt) with --arch.
    It learns from its own answers on the images while channels are taken out, until the budget is met. What is written
    is verified. Class folders in the images serve to report accuracy, never to learn. Exit code 5: the budget was not
    reached.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    config = CompressConfig(**given)
    _refuse_idle(ctx, config, given, has_int8=quantize is not None)

    from graphprune.compress import BenchmarkOptions, DataOptions, compress
    from graphprune.formats.loading import load_model
    from graphprune.formats.user_code import import_function
    from graphprune.int8.quantize import QuantizeOptions
    from graphprune.report.summary import render_metrics
    from graphprune.training.processes import Processes

    processes = Processes.join(config.device)
    if not processes.is_first:
        ctx.ensure_object(RunState).quiet = True
        ctx.ensure_object(RunState).set_up_log()
    own = None if metric is None else import_function(metric, "`metric`")
    loaded = load_model(model, arch=arch, entry=entry, trust_pickle=trust_pickle)
    with progress(quiet=ctx.ensure_object(RunState).quiet) as reporter:
        result, missed = with_missed(
            compress,
            loaded,
            data,
            macs=macs,
            params=params,
            speedup=speedup,
            latency_ms=latency_ms,
            output=output,
            config=config,
            data=DataOptions(
                image_size=image_size, channels=int(channels) if channels else None, mean=mean, std=std, limit=limit
            ),
            eval_images=eval_data,
            benchmark=BenchmarkOptions(benchmark_seconds, benchmark_threads, benchmark_batch, provider),
            quantize=None
            if quantize is None
            else QuantizeOptions(min_agreement=min_agreement, seed=config.seed, threads=benchmark_threads),
            resume=resume,
            force=force,
            reporter=reporter,
            metric=own,
            record={
                **{"model": str(model), "arch": arch, "entry": entry},
                **{"data": str(data), "eval_data": eval_data and str(eval_data), "metric": metric},
            },
        )
    if not processes.is_first:
        return
    if as_json:
        print_json(result.metrics)
    else:
        print_text(render_metrics, result.metrics)
        say_files(output, list(result.family), int8=quantize is not None)
    if isinstance(missed, UnfinishedError):
        raise _with_way_on(missed, output, data, min_agreement)
    if missed is not None:
        raise missed


def _refuse_idle(ctx: click.Context, config: CompressConfig, given: Mapping[str, Any], *, has_int8: bool) -> None:
    """Refuse options that nothing would come of."""
    from graphprune.allocation import SEARCHES

    if not has_int8 and ctx.get_parameter_source("min_agreement") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--min-agreement is that of int8 with float32: give --quantize int8 as well")
    for name in ("search_evaluations", "search_images"):
        if name in given and config.policy not in SEARCHES:
            raise UsageError(
                f"--{name.replace('_', '-')} is for policies that try allocations out: give --policy "
                f"{', '.join(SEARCHES)} with it"
            )


def _with_way_on(error: UnfinishedError, output: Path, data: Path, min_agreement: float) -> UnfinishedError:
    """The same error, with the command that makes the int8 file that is missing."""
    result = cast("CompressResult", error.result)
    name = next(iter(result.metrics["int8_missing"]))
    words = ["graphprune", "quantize", output / f"{name}.onnx", output / f"{name}-int8.onnx", "--data", data]
    words += ["--min-agreement", min_agreement]
    way = " ".join(shlex.quote(str(word)) for word in words)
    return UnfinishedError(f"{error}; to try that again, perhaps with other images: {way}", result, cause=error)


def with_missed(
    compress: Callable[..., "CompressResult"], *arguments: Any, **options: Any
) -> tuple["CompressResult", MissedBudgetError | UnfinishedError | None]:
    """What was made, and the error that says what it lacks, if it does."""
    try:
        return compress(*arguments, **options), None
    except (MissedBudgetError, UnfinishedError) as error:
        return cast("CompressResult", error.result), error


def say_files(folder: Path, family: Sequence[str] = ("slim",), *, int8: bool = False) -> None:
    """Say where the results are.

    Args:
        folder: the output folder.
        family: names of the slim models in it.
        int8: whether each has an int8 version.
    """
    files = dict(_FILES)
    if list(family) != ["slim"]:
        shared = {name: text for name, text in files.items() if name in ("dense.onnx", "metrics.json")}
        files = {}
        for name in family:
            curve = f"search{name.removeprefix('slim')}.svg"
            own = {f"{name}.onnx": "slim.onnx", f"{name}.pt2": "slim.pt2", curve: "search.svg"}
            files |= {file: _FILES[what] for file, what in own.items()}
        files |= shared
    if int8:
        files = {**{f"{name}{_INT8}": "the slim model in int8" for name in family}, **files}
    files = {
        name: text
        for name, text in files.items()
        if not (name.endswith((*_SOMETIMES, _INT8))) or (folder / name).exists()
    }
    width = max(len(str(folder / name)) for name in files)
    click.echo()
    for name, text in files.items():
        click.echo(f"{folder / name!s:{width}}  {text.format(folder / name)}")

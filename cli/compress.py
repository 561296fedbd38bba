"""`graphprune compress MODEL --data DIR --macs 0.5 -o OUT/`: the main job."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from graphprune.cli.options import (
    Align,
    Numbers,
    RunState,
    arch_options,
    data_options,
    force_option,
    json_option,
    output_loss_option,
    provider_option,
    seed_option,
)
from graphprune.cli.output import print_json, print_text
from graphprune.cli.progress import progress
from graphprune.config import CompressConfig
from graphprune.passes.errors import MissedBudgetError, UsageError

if TYPE_CHECKING:
    from graphprune.compress import CompressResult

__all__ = ["command", "say_files", "with_missed"]

_DEFAULT = CompressConfig()
_SHARES = Numbers("share", "0.5", "0.66,0.5,0.33")

_FILES = {
    "slim.onnx": "the slim model",
    "dense.onnx": "the model as it came, for comparison",
    "slim.pt2": 'the slim model for PyTorch: graphprune.load("{}")',
    "plan.json": "the channels that went",
    "latency.json": "how long every layer takes at which width on this machine",
    "search.svg": "the course of the search: reward of every evaluation",
    "metrics.json": "everything measured, with settings and versions",
}
_SOMETIMES = ("latency", "search")  # how names of files begin that some runs do not write


@click.command("compress")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@click.option("--eval-data", type=click.Path(path_type=Path), help="More images, to measure the result on and no more.")
@click.option("--limit", type=click.IntRange(min=2), help="Learn from so many of the images. Default: all.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Gray or color. Default: what the model takes.")
@arch_options
@click.option(
    "--macs",
    type=_SHARES,
    metavar="SHARE[,...]",
    help="Share of the multiply-accumulates that may be left: 0.5. Several, as in 0.66,0.5,0.33, make a family.",
)
@click.option("--params", type=_SHARES, metavar="SHARE[,...]", help="Share of the parameters that may be left.")
@click.option(
    "--speedup",
    type=Numbers("number of times", "2", "1.5,2,3"),
    metavar="TIMES[,...]",
    help="How many times faster than before, measured in onnxruntime on this machine: 2.",
)
@click.option(
    "--latency-ms",
    type=Numbers("number of milliseconds", "5", "5,2.5"),
    metavar="MS[,...]",
    help="Milliseconds that one run may take, measured likewise.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT", help="Folder for the results."
)
@click.option("--epochs", type=float, help=f"Passes over the images; may be a fraction. Default: {_DEFAULT.epochs:g}.")
@click.option("--batch-size", type=int, help=f"Images a step. Default: {_DEFAULT.batch_size}.")
@click.option("--lr", type=float, help=f"Peak learning rate. Default: {_DEFAULT.lr:g}.")
@click.option(
    "--align",
    type=Align(),
    help="Keep multiples of so many channels in a layer; auto: widths that are quick on this machine, measured, as "
    f"--speedup takes in any case. Default: {_DEFAULT.align}.",
)
@click.option(
    "--policy",
    type=click.Choice(["auto", "knapsack", "threshold", "uniform", "ddpg", "bee-colony", "random"]),
    help="How many channels go from where. The last three try allocations out before the training, and keep the best. "
    "Default: auto, the knapsack where latency matters, else the threshold.",
)
@click.option(
    "--search-evaluations",
    type=click.IntRange(min=1),
    help=f"How many allocations such a policy tries out. Default: {_DEFAULT.search_evaluations}.",
)
@click.option(
    "--search-images",
    type=click.IntRange(min=2),
    help=f"Images that it judges each on. Default: {_DEFAULT.search_images}.",
)
@click.option(
    "--recipe",
    type=click.Choice(["dynamic", "combined"]),
    help="combined: a search (--policy, by default ddpg) allocates the convolutions, --sigma prunes the linear layers, "
    "and the training keeps to both. Default: dynamic.",
)
@click.option(
    "--sigma",
    type=click.FloatRange(min=0),
    help="Weights of linear layers nearer to their mean than so many standard deviations become zero. Default: none "
    "do; with --recipe combined 3.",
)
@click.option(
    "--freeze",
    multiple=True,
    metavar="GLOB",
    help="Layers that keep all their channels, and linear ones all their weights: layer1.*. Can be repeated.",
)
@click.option(
    "--students",
    "n_students",
    type=click.IntRange(min=1),
    help="Students that learn side by side for one budget; the best on images held out is delivered. Default: 1.",
)
@click.option(
    "--students-per-step",
    type=click.IntRange(min=0),
    help="So many of the students, or of the members of a family, learn in each step, in turns. Default: all.",
)
@click.option(
    "--sensitivity",
    type=click.Choice(["taylor", "l2", "l1", "bn_scale", "fpgm", "apoz", "entropy", "hrank", "random"]),
    help=f"What tells which channels matter least. Default: {_DEFAULT.sensitivity}.",
)
@click.option(
    "--course",
    type=click.Choice(["dynamic", "static", "one-shot"]),
    help="Channels to go are chosen anew all along, chosen once and faded out, or cut at once. Default: dynamic.",
)
@click.option(
    "--lambda-feature",
    type=float,
    help=f"Weight of the loss on features; 0 leaves it out. Default: {_DEFAULT.lambda_feature:g}.",
)
@output_loss_option
@click.option(
    "--shrink/--no-shrink",
    default=None,
    help="Remove channels during the training, which makes it faster. Default: on.",
)
@click.option(
    "--flip/--no-flip", default=None, help="Mirror images at random; not for digits and letters. Default: on."
)
@click.option("--crop/--no-crop", default=None, help="Shift images at random. Default: on.")
@click.option("--mix", type=float, help="Share of the training images that are blended with another one. Default: 0.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), help="Of the training. Default: auto.")
@click.option(
    "--device", help="To train on, as torch names it: cpu, cuda, cuda:1. Default: a CUDA device if there is one."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the training. Default: all cores.")
@click.option("--checkpoint-steps", type=int, help="Save the run every so many steps. Default: every minute.")
@seed_option
@click.option(
    "--benchmark-seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Timed seconds for each file at the end; 0 for none.",
)
@click.option(
    "--benchmark-threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of onnxruntime, at the end and for budgets in latency.",
)
@click.option(
    "--benchmark-batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Images in one run, likewise.",
)
@provider_option
@click.option("--quantize", type=click.Choice(["int8"]), help="Also write slim-int8.onnx, calibrated on the images.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Share of images on which int8 must answer as float32 does; else layers are left in float32.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in OUT.")
@force_option
@json_option
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
    limit: int | None,
    channels: str | None,
    arch: str | None,
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

    MODEL is a .pt2 archive (torch.export.save), or a state dict (.safetensors, .pt) with --arch. The network learns
    from its own answers on the images while channels are taken out, until the budget (--speedup, --latency-ms, --macs,
    --params; several must all hold) is met. What is written is verified: the slim ONNX file computes what the trained
    network with those channels at zero does. Class folders in the images serve to report accuracy, never to learn.

    Exit code 5 says that the budget was not reached: before the training, that it cannot be; after it, that the slim
    file turned out slower than was asked for. It is written and described all the same.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    config = CompressConfig(**given)
    _refuse_idle(ctx, config, given, has_int8=quantize is not None)

    from graphprune.compress import BenchmarkOptions, DataOptions, compress
    from graphprune.formats.loading import load_model
    from graphprune.int8.quantize import QuantizeOptions
    from graphprune.report.summary import render_metrics
    from graphprune.training.processes import Processes

    processes = Processes.join(config.device)
    if not processes.is_first:
        ctx.ensure_object(RunState).quiet = True
        ctx.ensure_object(RunState).set_up_log()
    loaded = load_model(model, arch=arch, trust_pickle=trust_pickle)
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
            record={"model": str(model), "arch": arch, "data": str(data), "eval_data": eval_data and str(eval_data)},
        )
    if not processes.is_first:
        return
    if as_json:
        print_json(result.metrics)
    else:
        print_text(render_metrics, result.metrics)
        say_files(output, list(result.family), int8=quantize is not None)
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


def with_missed(
    compress: Callable[..., "CompressResult"], *arguments: Any, **options: Any
) -> tuple["CompressResult", MissedBudgetError | None]:
    """What was made, and the error that says that it is too slow, if it is."""
    try:
        return compress(*arguments, **options), None
    except MissedBudgetError as error:
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
        files = {**{f"{name}-int8.onnx": "the slim model in int8" for name in family}, **files}
    files = {name: text for name, text in files.items() if not name.startswith(_SOMETIMES) or (folder / name).exists()}
    width = max(len(str(folder / name)) for name in files)
    click.echo()
    for name, text in files.items():
        click.echo(f"{folder / name!s:{width}}  {text.format(folder / name)}")

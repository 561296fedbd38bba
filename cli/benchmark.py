"""`graphprune benchmark A.onnx B.onnx`: latency or throughput of ONNX files against each other, and where it goes."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from graphprune.cli.options import Counts, json_option, provider_option, seed_option, shape_option
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import ModelLoadError, UsageError

__all__ = ["command"]

SCHEMA = 2


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A.onnx [B.onnx]...")
@click.option("--name", "names", multiple=True, help="What to call a model; once for each, in their order.")
@click.option(
    "--batch",
    "batches",
    type=Counts(),
    metavar="N[,...]",
    help="Samples in one run. Default: those of --shape or of the file, else 1.",
)
@click.option(
    "--threads",
    type=Counts(),
    default="1",
    show_default=True,
    metavar="N[,...]",
    help="Threads that onnxruntime uses inside one operator.",
)
@click.option(
    "--mode",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One request at a time, or sessions on all processors without a pause.",
)
@click.option("--streams", type=click.IntRange(min=1), help="Sessions of a throughput. Default: processors / threads.")
@click.option("--pin/--no-pin", default=True, show_default=True, help="Keep threads on the quietest processors.")
@click.option("--profile", "profiled", is_flag=True, help="Also show where the time of each file goes, by operator.")
@shape_option
@click.option(
    "--min-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Timed seconds for each model.",
)
@seed_option
@provider_option
@json_option
def command(
    models: tuple[Path, ...],
    names: tuple[str, ...],
    batches: tuple[int, ...] | None,
    threads: tuple[int, ...],
    mode: str,
    streams: int | None,
    pin: bool,
    profiled: bool,
    shapes: Mapping[str, tuple[int, ...]] | None,
    min_seconds: float,
    seed: int,
    provider: str,
    as_json: bool,
) -> None:
    """Measure ONNX files side by side; the first is what the others are compared with.

    The files take turns in random order, so that whatever else the machine does meets them alike. Shown are the
    median, the 10th and 90th percentile, and the speed-up with its 95 % interval, for every batch and number of
    threads. --profile adds the time of every operator, and which layers fell out of the fast layout and why; it is
    taken at the first batch and number of threads, in runs of its own.
    """
    from graphprune.report.profile import profile
    from graphprune.report.profile_text import render_profile
    from graphprune.report.summary import render_benchmarks
    from graphprune.runtime.benchmark import benchmark_grid

    for model in models:
        if model.is_file() and model.suffix.lower() != ".onnx":
            raise ModelLoadError(f"{model}: only .onnx files can be benchmarked; export the model first")
    named = dict(zip(_names(models, names), models, strict=True))
    runs = benchmark_grid(
        named,
        threads=threads,
        batches=batches or (None,),
        mode=mode,
        streams=streams,
        pin=pin,
        shapes=shapes,
        seed=seed,
        provider=provider,
        min_seconds=min_seconds,
    )
    profiles = [
        profile(path, name=name, batch=runs[0].batch, threads=threads[0], shapes=shapes, seed=seed, provider=provider)
        for name, path in (named.items() if profiled else ())
    ]
    if as_json:
        found = [report.to_dict() for report in profiles]
        print_json({"schema": SCHEMA, "runs": [run.to_dict() for run in runs], "profiles": found})
        return
    print_text(render_benchmarks, runs)
    for report in profiles:
        click.echo()
        print_text(render_profile, report)


def _names(models: tuple[Path, ...], names: tuple[str, ...]) -> list[str]:
    """Return the names asked for, or the files' own as far as they are told apart by them."""
    if names and (len(names) != len(models) or len(set(names)) != len(names)):
        raise UsageError(
            f"--name: {len(models)} different names are needed, one for each file; {len(names)} were given"
        )
    stems = Counter(model.stem for model in models)
    own = [model.stem if stems[model.stem] == 1 else str(model) for model in models]
    twice = [name for name, times in Counter(own).items() if times > 1]
    if twice and not names:
        raise UsageError(f"{twice[0]} is given twice; tell them apart with --name")
    return list(names) or own

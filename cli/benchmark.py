"""`graphprune benchmark A.onnx B.onnx`: latency of ONNX files against each other."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from graphprune.cli.options import json_option, provider_option, seed_option, shape_option, threads_option
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import ModelLoadError, UsageError

__all__ = ["command"]

SCHEMA = 1


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A.onnx [B.onnx]...")
@click.option("--name", "names", multiple=True, help="What to call a model; once for each, in their order.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples in one run.")
@threads_option
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
    batch: int,
    threads: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    min_seconds: float,
    seed: int,
    provider: str,
    as_json: bool,
) -> None:
    """Measure the latency of ONNX files side by side; the first is what the others are compared with.

    The files take turns in random order, so that whatever else the machine does meets them alike. Shown are the
    median, the 10th and 90th percentile, and the speed-up with its 95 % interval.
    """
    from graphprune.benchmark import benchmark
    from graphprune.report import render_benchmark

    for model in models:
        if model.is_file() and model.suffix.lower() != ".onnx":
            raise ModelLoadError(f"{model}: only .onnx files can be benchmarked; export the model first")
    named = dict(zip(_names(models, names), models, strict=True))
    report = benchmark(
        named, threads=threads, batch=batch, shapes=shapes, seed=seed, provider=provider, min_seconds=min_seconds
    )
    if as_json:
        print_json({"schema": SCHEMA, **report.to_dict()})
    else:
        print_text(render_benchmark, report)


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

"""`graphprune quantize IN.onnx OUT.onnx --data DIR`: int8 by post-training static quantization."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli.options import (
    data_options,
    force_option,
    inputs_option,
    json_option,
    quantize_options,
    seed_option,
    threads_option,
    together,
)
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import BudgetError, ModelLoadError, UsageError

if TYPE_CHECKING:
    from graphprune.int8.quantize import QuantizeOptions, QuantizeReport

__all__ = ["command"]


@click.command("quantize")
@click.argument("source", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT.onnx")
@together(*data_options())
@inputs_option
@click.option("--limit", type=click.IntRange(min=2), help="Use so many of the samples. Default: as many as are needed.")
@together(*quantize_options)
@click.option(
    "--benchmark-seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Timed seconds for each file at the end; 0 for none.",
)
@threads_option
@seed_option
@force_option
@json_option
def command(
    source: Path,
    target: Path,
    data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | tuple[int, int] | None,
    inputs: Path | None,
    limit: int | None,
    benchmark_seconds: float,
    threads: int,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write an int8 version of a float32 ONNX file, calibrated on unlabelled images, or on arrays for its inputs.

    Post-training static quantization with onnxruntime's quantizer (QDQ format, weights per channel and symmetric). On
    images that were not calibrated on, the answers are compared with those of IN.onnx; layers that change too many are
    left in float32: the first and the last, then the most sensitive ones. Exit code 5 says that the agreement asked
    for was missed; OUT.onnx is then the best that was found.

    --data takes images, for a file with one input of 1 or 3 channels, first or last, in floats or in bytes. Every other
    file takes --inputs: arrays of just what it reads, with the samples along the dimension that is the batch.
    """
    from graphprune.formats.input_arrays import read_inputs
    from graphprune.inputs import DataOptions
    from graphprune.int8.quantize import QuantizeOptions, quantize_onnx
    from graphprune.report.summary import render_metrics

    for path in (source, target):
        if path.suffix.lower() != ".onnx":
            raise ModelLoadError(f"{path}: not an .onnx file; `graphprune compress --quantize int8` takes torch models")
    if (data is None) == (inputs is None):
        raise UsageError(
            "give the images with --data, or the arrays for the inputs with --inputs"
            + (", and not both" if data is not None else "")
        )
    arrays = None if inputs is None else read_inputs(inputs, source)
    options = QuantizeOptions(threads=threads, **settings)
    needed = options.calibration_images + options.search_images
    images = DataOptions(image_size=image_size, mean=mean, std=std, limit=limit or needed)
    report = quantize_onnx(source, target, data, inputs=arrays, options=options, data=images, force=force)
    metrics = _metrics(source, target, report, options, benchmark_seconds, arrays)
    if as_json:
        print_json({"output": str(target), **metrics})
    else:
        print_text(render_metrics, metrics)
        click.echo(f"\n{target}")
    if not report.reached:
        raise BudgetError(f"{target}: {report.describe_miss(options.min_agreement)}")


def _metrics(
    source: Path,
    target: Path,
    report: "QuantizeReport",
    options: "QuantizeOptions",
    seconds: float,
    arrays: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from graphprune.int8.inputs import example_of
    from graphprune.report.summary import collect_metrics
    from graphprune.runtime.benchmark import benchmark

    files = {"float32": source, "int8": target}
    shapes = report.input_shapes  # sizes that the file leaves open are those of the samples
    timing = None
    if seconds:
        feed = (
            None if arrays is None else example_of(source, arrays)
        )  # random numbers may be none that it can be run on
        timing = benchmark(
            files, threads=options.threads, inputs=feed, shapes=shapes, seed=options.seed, min_seconds=seconds
        )
    agreement = {} if report.agreement is None else {"int8": report.agreement}
    metrics = collect_metrics(files, benchmark=timing, agreement=agreement, shapes=shapes)
    return {**metrics, "int8": [{"name": "int8", "of": "float32", **report.to_dict(), "options": options.to_dict()}]}

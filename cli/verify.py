"""`graphprune verify A B`: whether two models compute the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from graphprune.cli.options import (
    arch_options,
    data_options,
    inputs_option,
    json_option,
    seed_option,
    shape_option,
    together,
)
from graphprune.cli.output import print_json, print_text
from graphprune.passes.errors import DataError, UsageError, VerificationError

__all__ = ["command"]

SCHEMA = 1
RANDOM_SAMPLES = 16


@click.command("verify")
@click.argument("reference", type=click.Path(path_type=Path), metavar="A")
@click.argument("candidate", type=click.Path(path_type=Path), metavar="B")
@together(*data_options())
@click.option(
    "--limit", type=click.IntRange(min=1), default=256, show_default=True, help="Use at most so many images of --data."
)
@shape_option
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="Largest difference that passes, relative to the largest value of its place in an output: of its channel, or "
    "a smaller part. Default: 1e-4, and 1e-2 where a file computes in float16.",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="Absolute difference that passes. Default: a two-hundredth of --rtol.",
)
@inputs_option
@click.option("--unoptimized", is_flag=True, help="Compare with onnxruntime's graph optimization switched off as well.")
@seed_option
@together(*arch_options)
@json_option
def command(
    reference: Path,
    candidate: Path,
    data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | tuple[int, int] | None,
    limit: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    rtol: float | None,
    atol: float | None,
    inputs: Path | None,
    unoptimized: bool,
    seed: int,
    arch: str | None,
    entry: str | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Check that the models A and B give the same outputs: on images, on the arrays of --inputs, else on random inputs.

    A and B are .onnx, .pt2, .safetensors, .pt or .ckpt files. Every place of an output is held to its own scale. Of
    ONNX files that select at their end, as detectors do, what enters the selection is compared as well. Exit code 4
    says that they differ, or that there was nothing to compare.
    """
    from graphprune.report.summary import render_comparison
    from graphprune.verification.verify import compare, explain

    first, second = models = [_load(path, arch, entry, trust_pickle) for path in (reference, candidate)]
    samples: Any
    if data is not None and inputs is not None:
        raise UsageError("give the images with --data, or the arrays for the inputs with --inputs, and not both")
    if inputs is not None:
        samples = _arrays(inputs, models)
    elif data is None:
        samples = _random_inputs(models, shapes, seed)
    else:
        samples = _images(models, data, limit, {"mean": mean, "std": std, "image_size": image_size})
    labels = str(reference), str(candidate)
    comparison = compare(first, second, samples, rtol=rtol, atol=atol, unoptimized=unoptimized, labels=labels)
    if as_json:
        print_json({"schema": SCHEMA, **comparison.to_dict()})
    else:
        print_text(render_comparison, comparison)
    if not comparison.equal:
        raise VerificationError(explain(comparison, first, second, samples, labels=labels))


def _load(path: Path, arch: str | None, entry: str | None, trust_pickle: bool) -> Any:
    """Return what `compare` takes; a torch model only when it is one, since importing torch takes a second."""
    if path.suffix.lower() == ".onnx":
        return path
    from graphprune.formats.loading import load_model

    if path.suffix.lower() == ".pt2":
        arch = entry = None  # they are for the other file
    return load_model(path, arch=arch, entry=entry, trust_pickle=trust_pickle)


def _random_inputs(
    models: list[Any], shapes: Mapping[str, tuple[int, ...]] | None, seed: int
) -> tuple[np.ndarray, ...]:
    from graphprune.runtime.onnx_inputs import InputSpec, input_shapes, random_inputs

    specs = _specs(models)
    if specs is None and shapes:
        from graphprune.inputs import require_batch

        for model in models:
            require_batch(model, shapes.values())
        specs = tuple(InputSpec(name, np.float32, (None,) * len(shape)) for name, shape in shapes.items())
    if specs is None:
        raise UsageError("neither model says what it takes: give --data, or the shape of its input with --shape")
    known = input_shapes(specs, batch=RANDOM_SAMPLES, shapes=shapes)
    return tuple(random_inputs(specs, known, seed).values())


def _images(models: list[Any], data: Path, limit: int, options: dict[str, Any]) -> np.ndarray:
    """Return images as both models take them; size and channels are those of the model unless they are given."""
    from graphprune.data import load_images
    from graphprune.inputs import image_sizes

    specs = _specs(models)
    if specs is not None and (len(specs) != 1 or len(specs[0].dims) != 4):
        raise UsageError("--data is for models with one input of images; leave it out to compare on random inputs")
    channels, *size = image_sizes(specs[0].dims) if specs is not None else (None,)
    if options["image_size"] is None and len(size) == 2 and None not in size:
        options["image_size"] = tuple(size)
    source = load_images(data, limit=limit, channels=3 if channels is None else channels, **options)
    return source.batch(slice(None))


def _arrays(path: Path, models: list[Any]) -> tuple[np.ndarray, ...]:
    """Return the arrays of a file in the order of the inputs, which a model states that is an ONNX file."""
    from graphprune.formats.input_arrays import read_inputs
    from graphprune.runtime.onnx_inputs import input_specs
    from graphprune.runtime.onnx_session import open_session

    source = next((model for model in models if isinstance(model, Path)), None)
    if source is None:
        raise UsageError("--inputs names the inputs of an .onnx file, and neither model is one: give --data or --shape")
    arrays = read_inputs(path, source)
    names = [spec.name for spec in input_specs(open_session(source, optimize=False, mapped=True), str(source))]
    if missing := next((name for name in names if name not in arrays), None):
        raise DataError(f"{path}: no array is given for the input '{missing}'")
    return tuple(arrays[name] for name in names)


def _specs(models: list[Any]) -> Any:
    from graphprune.verification.model_runner import describe_inputs

    return next((specs for specs in map(describe_inputs, models) if specs is not None), None)

"""From a float32 ONNX file and unlabelled images to one that computes in int8, judged on images it has not seen.

The images are split at random: a calibration part gives the ranges of activations, a search part tells which layers
stay in float32.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.config import require_choice
from graphprune.data import ImageSource, Preprocess
from graphprune.formats.files import atomic_write, refuse_overwrite
from graphprune.formats.onnx_cost import size_of
from graphprune.inputs import DataOptions, Images, image_sizes, read_images
from graphprune.int8.quantizer import Calibrated, calibrate, inputs_of, layers_of, prepare
from graphprune.int8.scheme import CALIBRATIONS, Scheme, scheme_of_machine
from graphprune.int8.search import Choice, Judge, Trial, choose_layers, describe_miss
from graphprune.passes.errors import DataError, UnsupportedModelError, UsageError, VerificationError
from graphprune.runtime.onnx_session import one_line
from graphprune.version import __version__

__all__ = ["AUTO", "QuantizeOptions", "QuantizeReport", "quantize_onnx"]

logger = logging.getLogger("graphprune")

AUTO = "auto"
_CALIBRATION_BATCH = 32
_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class QuantizeOptions:
    """How a file is quantized.

    Attributes:
        calibration: which range of an activation is kept: "minmax", "percentile" (99.99 %), "entropy" (slow); "auto"
            is the first, and the second where the first misses the agreement asked for.
        calibration_images: images to find the ranges on.
        search_images: further images, to compare int8 with float32 on.
        min_agreement: share of these on which both must give the same class; where it is missed, layers are left in
            float32. For networks without classes, 1 - relative squared distance of the outputs.
        max_float_layers: share of the layers that may be left in float32.
        reduce_range: 7-bit weights; by default where the int8 kernels of this machine saturate.
        output_loss: what the outputs are, as in `CompressConfig`: "mse" compares numbers by their distance, "kl"
            classes; "auto" takes a single output of shape (batch, classes) for classes. Outputs of integers count by
            the share of those that differ, and of several outputs the worst.
        seed: which images are taken.
        threads: of onnxruntime.
    """

    calibration: str = "auto"
    calibration_images: int = 256
    search_images: int = 512
    min_agreement: float = 0.99
    max_float_layers: float = 0.5
    reduce_range: bool | None = None
    output_loss: str = AUTO
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.calibration not in (AUTO, *CALIBRATIONS):
            raise UsageError(f"the calibration is {AUTO}, {', '.join(CALIBRATIONS)}, not {self.calibration!r}")
        require_choice("output_loss", self.output_loss)
        for name in ("min_agreement", "max_float_layers"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be between 0 and 1")
        for name in ("calibration_images", "search_images", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class QuantizeReport:
    """What came of a quantization.

    Attributes:
        scheme: which integers stand for what.
        layers: number of layers with weights.
        float_layers: names of those left in float32.
        agreement: with the float model on the images of the search; None for networks without classes.
        agreement_unit: what it is a share of, "images" or "pixels".
        distance: squared distance of the outputs there, relative to their spread.
        reached: whether the agreement asked for is reached.
        calibration_images: number of images that the ranges come from.
        search_images: number of images that were compared.
        input_shape: channels, height and width of the images as the model got them.
        bytes_before: size of the float file, external data included.
        bytes_after: size of the int8 file.
        trials: what was tried, in its order.
        sensitivity: what the outputs change with this layer alone in int8; empty where no search was needed.
    """

    scheme: Scheme
    layers: int
    float_layers: tuple[str, ...]
    agreement: float | None
    agreement_unit: str
    distance: float
    reached: bool
    calibration_images: int
    search_images: int
    input_shape: tuple[int, int, int]
    bytes_before: int
    bytes_after: int
    trials: tuple[Trial, ...]
    sensitivity: dict[str, float]

    @property
    def fidelity(self) -> float:
        """What was compared with the agreement asked for."""
        return self._trial.fidelity

    def describe_miss(self, min_agreement: float) -> str:
        """How int8 falls short of what was asked for, to go after the name of the file."""
        return describe_miss(self._trial, min_agreement)

    @property
    def _trial(self) -> Trial:
        return Trial("", 0, self.agreement, self.distance, self.agreement_unit)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "scheme_text": str(self.scheme)}


def quantize_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    images: Images,
    *,
    options: QuantizeOptions | None = None,
    data: DataOptions | None = None,
    force: bool = False,
) -> QuantizeReport:
    """Write an int8 version of a float32 ONNX file, calibrated on images; no labels are used.

    Layers without which the answers differ too much are left in float32. Where even that does not help, the best that
    was tried is written all the same, with `reached` false in the report.

    Args:
        source: file to read; one input of images.
        target: file to write.
        images: a path, what `load_images` returned, or an array of network inputs.
        options: how.
        data: how images are read from files; by default as the file's own metadata says, if `compress` wrote it.
        force: overwrite `target`.

    Raises:
        ModelLoadError: the file cannot be read.
        OutputExistsError: `target` exists.
        UsageError: `target` is `source`.
        DataError: the images are missing, too few, or not what the model takes.
        UnsupportedModelError: the model is quantized already, or onnxruntime cannot quantize it.
        VerificationError: what the quantizer made is no valid model; nothing is written.
    """
    options = options or QuantizeOptions()
    if os.path.realpath(source) == os.path.realpath(target):
        raise UsageError(
            f"{target}: is the float32 file itself, which is still needed; give the int8 file another name"
        )
    refuse_overwrite(target, force)
    model = prepare(Path(source))
    pictures = _read(model, images, data)
    ranges, search = _parts(pictures, options)
    layers = layers_of(model)
    if not layers:
        inside = any(a.type in _BODIES for node in model.graph.node for a in node.attribute)
        where = " outside the bodies of If, Loop and Scan, which are left as they are" if inside else ""
        raise UnsupportedModelError(f"{source}: there is nothing to quantize, no layer has weights of its own{where}")
    judge = Judge(model.SerializeToString(), search, options.threads, output_loss=options.output_loss)
    choice = choose_layers(
        _calibrated(model, ranges, options), judge, options.min_agreement, int(options.max_float_layers * len(layers))
    )
    with atomic_write(target) as temporary:
        temporary.write_bytes(_signed(choice.model, str(target)))
        size = temporary.stat().st_size
    if not choice.reached:
        _say_missed(target, choice, options)
    return QuantizeReport(
        scheme=choice.scheme,
        layers=len(layers),
        float_layers=choice.float_layers,
        agreement=choice.trial.agreement,
        agreement_unit=choice.trial.unit,
        distance=choice.trial.distance,
        reached=choice.reached,
        calibration_images=len(ranges),
        search_images=len(search),
        input_shape=pictures.preprocess.input_shape,
        bytes_before=size_of(source),
        bytes_after=size,
        trials=choice.trials,
        sensitivity=choice.sensitivity,
    )


def _calibrated(model: onnx.ModelProto, images: ImageSource, options: QuantizeOptions) -> Iterator[Calibrated]:
    for calibration in ("minmax", "percentile") if options.calibration == AUTO else (options.calibration,):
        scheme = scheme_of_machine(calibration, options.reduce_range)
        logger.info("int8: %s, on %d images", scheme, len(images))
        yield calibrate(model, _batches(model, images), scheme)


def _read(model: onnx.ModelProto, images: Images, data: DataOptions | None) -> ImageSource:
    """The images as the model takes them: sizes from its input, mean and std from its metadata."""
    inputs = inputs_of(model)
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else ()
    if len(dims) != 4:
        raise UnsupportedModelError("only a model with a single input of images (NxCxHxW) can be calibrated on images")
    if (kind := inputs[0].type.tensor_type.elem_type) != onnx.TensorProto.FLOAT:
        raise UnsupportedModelError(
            f"the model takes images in {onnx.TensorProto.DataType.Name(kind).lower()}; only one that takes them in "
            "float32 can be quantized"
        )
    channels, height, width = image_sizes([dim.dim_value or None for dim in dims])
    noted = next((p.value for p in model.metadata_props if p.key == "graphprune_preprocessing"), None)
    seen = _preprocessing(noted) if noted else None
    given = data or DataOptions()
    size = given.image_size or ((height, width) if height and width else None) or (seen.image_size if seen else None)
    source = read_images(
        images,
        DataOptions(
            image_size=size,
            channels=given.channels or channels,
            mean=given.mean or (seen.mean if seen else None),
            std=given.std or (seen.std if seen else None),
            limit=given.limit,
        ),
    )
    expected = (channels, height, width)
    if any(want not in (None, got) for want, got in zip(expected, source.preprocess.input_shape, strict=True)):
        raise DataError(f"{source.name}: images of {source.preprocess.input_shape} where the model takes {expected}")
    return source


def _preprocessing(noted: str) -> Preprocess:
    """What the metadata of a file say about its images."""
    try:
        return Preprocess.from_dict(json.loads(noted))
    except (ValueError, UsageError) as error:
        raise UnsupportedModelError(
            f"its metadata graphprune_preprocessing cannot be read ({one_line(error)}): take that entry out, and give "
            "--mean and --std"
        ) from error


def _parts(images: ImageSource, options: QuantizeOptions) -> tuple[ImageSource, ImageSource]:
    """Images for the ranges and others for the comparison, drawn at random; half each where there are too few."""
    if len(images) < 2:
        raise DataError(f"{images.name} has {len(images)} image(s): at least two are needed, better some hundred")
    ranges = options.calibration_images
    if ranges + options.search_images > len(images):
        ranges = max(1, round(len(images) * ranges / (ranges + options.search_images)))
        ranges = min(ranges, len(images) - 1)
    drawn = images.sample(ranges + options.search_images, options.seed)
    return drawn.subset(np.arange(ranges)), drawn.subset(np.arange(ranges, len(drawn)))


def _batches(model: onnx.ModelProto, images: ImageSource) -> Iterator[np.ndarray]:
    dim = inputs_of(model)[0].type.tensor_type.shape.dim[0]
    return images.batches(dim.dim_value or _CALIBRATION_BATCH, fixed=bool(dim.dim_value))


def _signed(content: bytes, name: str) -> bytes:
    """The file's content; whatever the quantizer did, only valid ONNX is written."""
    model = onnx.load_model_from_string(content)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{name}: the quantized model is no valid ONNX: {one_line(error)}") from error
    model.producer_name, model.producer_version = "graphprune", __version__
    return model.SerializeToString()


def _say_missed(target: str | os.PathLike[str], choice: Choice, options: QuantizeOptions) -> None:
    logger.warning(
        "%s: %s; try another calibration, more images, or stay with float32",
        *(Path(target).name, describe_miss(choice.trial, options.min_agreement)),
    )

"""From a float32 ONNX file and unlabelled samples to one that computes in int8, judged on samples it has not seen.

The samples, mostly images, are split at random: a calibration part gives the ranges of activations, a search part tells
which layers stay in float32.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import onnx

from graphprune.formats.files import atomic_write, refuse_overwrite
from graphprune.formats.onnx_cost import size_of
from graphprune.inputs import DataOptions, Images
from graphprune.int8.options import AUTO, QuantizeOptions
from graphprune.int8.scheme import Scheme
from graphprune.int8.search import Choice, Trial, choose_layers, describe_miss
from graphprune.int8.work import Work
from graphprune.passes.errors import UsageError, VerificationError
from graphprune.runtime.onnx_session import one_line
from graphprune.version import __version__

__all__ = ["AUTO", "QuantizeOptions", "QuantizeReport", "quantize_onnx", "rehearse_int8"]

logger = logging.getLogger("graphprune")

_REHEARSED = 4  # samples for each of the two parts


@dataclass(frozen=True)
class QuantizeReport:
    """What came of a quantization.

    Attributes:
        scheme: which integers stand for what.
        layers: number of layers with weights.
        float_layers: names of those left in float32.
        unable: those of them that cannot be in int8 whatever the agreement, each with the reason.
        agreement: with the float model on the images of the search; None for networks without classes.
        agreement_unit: what it is a share of, "images" or "pixels".
        distance: squared distance of the outputs there, relative to their spread; that of the worst part.
        reached: whether the agreement asked for is reached.
        calibration_images: number of images that the ranges come from.
        search_images: number of images that were compared.
        input_shape: that of one sample of the first input, as the model got it: channels, height and width of an image.
        input_shapes: that of every input as it was fed; 0 where the samples stand.
        bytes_before: size of the float file, external data included.
        bytes_after: size of the int8 file.
        trials: what was tried, in its order.
        sensitivity: what the outputs change with this layer alone in int8; empty where no search was needed.
        worst: the part of the outputs whose distance that is, "" if there is one alone.
        float_end: why the end of the network stays in float32, if it does: a reason for each output that it leads to.
        not_compared: what of the outputs could not be compared, in words.
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
    input_shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    trials: tuple[Trial, ...]
    sensitivity: dict[str, float]
    unable: dict[str, str] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    worst: str = ""
    float_end: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def fidelity(self) -> float:
        """What was compared with the agreement asked for."""
        return self._trial.fidelity

    def describe_miss(self, min_agreement: float) -> str:
        """How int8 falls short of what was asked for, to go after the name of the file."""
        return describe_miss(self._trial, min_agreement)

    @property
    def _trial(self) -> Trial:
        return Trial("", 0, self.agreement, self.distance, self.agreement_unit, self.worst)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "scheme_text": str(self.scheme)}


def quantize_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    images: Images | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    options: QuantizeOptions | None = None,
    data: DataOptions | None = None,
    force: bool = False,
) -> QuantizeReport:
    """Write an int8 version of a float32 ONNX file, calibrated on images or arrays; no labels are used.

    Layers without which the answers differ too much are left in float32. Where even that does not help, the best that
    was tried is written all the same, with `reached` false in the report.

    Args:
        source: file to read.
        target: file to write.
        images: of the file's only input, which takes them with their channels first or last, normalized or as bytes: a
            path, what `load_images` returned, or an array of just what the input takes.
        inputs: in place of images, arrays by name of the input, of just what it takes: for files with several inputs,
            and for what is no image. Samples stand along the dimension that is the batch; an input that has none gets
            its array as it is.
        options: how.
        data: how images are read from files; by default as the file's own metadata says, if `compress` wrote it.
        force: overwrite `target`.

    Raises:
        ModelLoadError: the file cannot be read.
        OutputExistsError: `target` exists.
        UsageError: `target` is `source`; or both images and arrays are given, or neither.
        DataError: the samples are missing, too few, or not what the model takes.
        UnsupportedModelError: the model is quantized already, or onnxruntime cannot quantize any layer of it.
        VerificationError: what the quantizer made is no valid model, or there is nothing to compare on these samples;
            nothing is written.
    """
    options = options or QuantizeOptions()
    if os.path.realpath(source) == os.path.realpath(target):
        raise UsageError(
            f"{target}: is the float32 file itself, which is still needed; give the int8 file another name"
        )
    refuse_overwrite(target, force)
    work = Work.begin(Path(source), images, inputs, options, data)
    candidates = work.candidates()
    first = next(candidates)  # from here on it is known what cannot be in int8
    judge = work.judge()
    choice = choose_layers(chain([first], candidates), judge, options.min_agreement, work.most_floats)
    with atomic_write(target) as temporary:
        temporary.write_bytes(_signed(choice.model, str(target), Path(source)))
        size = temporary.stat().st_size
    if not choice.reached:
        _say_missed(target, choice, options)
    return QuantizeReport(
        scheme=choice.scheme,
        layers=work.layers,
        float_layers=(*choice.float_layers, *work.unable),
        agreement=choice.trial.agreement,
        agreement_unit=choice.trial.unit,
        distance=choice.trial.distance,
        reached=choice.reached,
        calibration_images=len(work.ranges),
        search_images=len(work.search),
        input_shape=work.input_shape,
        bytes_before=size_of(source),
        bytes_after=size,
        trials=choice.trials,
        sensitivity=choice.sensitivity,
        unable=work.unable,
        input_shapes=work.search.shapes,
        worst=choice.trial.worst,
        float_end=choice.float_end,
        not_compared=judge.not_compared,
    )


def rehearse_int8(
    source: str | os.PathLike[str], images: Images | None = None, *, options: QuantizeOptions | None = None
) -> dict[str, str]:
    """Do on a few images all that makes an int8 file, write nothing, and return the layers that cannot be in int8.

    Args:
        source: float32 file.
        images: as for `quantize_onnx`.
        options: how; the numbers of images do not count.

    Raises:
        As `quantize_onnx`.
    """
    few = replace(options or QuantizeOptions(), calibration_images=_REHEARSED, search_images=_REHEARSED)
    work = Work.begin(Path(source), images, None, few, None)
    calibrated = next(work.candidates())
    content = calibrated.quantized()
    work.judge()(content)
    _signed(content, f"the int8 version of {Path(source).name}", Path(source))
    return work.unable


def _signed(content: bytes, name: str, source: Path) -> bytes:
    """The file's content; whatever the quantizer did, only valid ONNX is written, or what comes of a file that is none.

    Raises:
        VerificationError: it is no valid ONNX, and `source` is.
    """
    problem = _invalidity(content)
    if problem and not _invalidity(source):
        raise VerificationError(f"{name}: the quantized model is no valid ONNX: {problem}")
    if problem:
        logger.warning("%s is not valid ONNX, and so is what is made of it: %s", source, problem)
    model = onnx.load_model_from_string(content)
    model.producer_name, model.producer_version = "graphprune", __version__
    return model.SerializeToString()


def _invalidity(model: bytes | Path) -> str:
    """What onnx finds wrong with a file or its content."""
    try:
        onnx.checker.check_model(model if isinstance(model, bytes) else os.fspath(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return one_line(error)
    return ""


def _say_missed(target: str | os.PathLike[str], choice: Choice, options: QuantizeOptions) -> None:
    logger.warning(
        "%s: %s; try another calibration, more images, or stay with float32",
        *(Path(target).name, describe_miss(choice.trial, options.min_agreement)),
    )

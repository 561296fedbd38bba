"""A model on its way to int8: prepared, with samples for its ranges and for its judge, calibrated and tried out."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.data.samples import Arrays, Samples
from graphprune.inputs import DataOptions, Images
from graphprune.int8.ends import mixed_values
from graphprune.int8.inputs import samples_of, specs_of
from graphprune.int8.layers import floats_of, layers_of
from graphprune.int8.options import AUTO, QuantizeOptions
from graphprune.int8.preparation import prepare
from graphprune.int8.quantizer import Calibrated, calibrate
from graphprune.int8.scheme import scheme_of_machine
from graphprune.int8.search import Judge
from graphprune.int8.trial import tried_out
from graphprune.passes.errors import DataError, UnsupportedModelError

__all__ = ["Work"]

logger = logging.getLogger("graphprune")

_CALIBRATION_BATCH = 32
_SOME = 5  # layers that are named
_LOOKED_AT = 2  # batches that show what scales the outputs have


@dataclass
class Work:
    """A model on its way to int8, and the samples for it."""

    source: Path
    model: onnx.ModelProto
    ranges: Samples
    search: Samples
    options: QuantizeOptions
    unable: dict[str, str]

    @classmethod
    def begin(
        cls,
        source: Path,
        images: Images | None,
        inputs: Mapping[str, Any] | None,
        options: QuantizeOptions,
        data: DataOptions | None,
    ) -> "Work":
        """Read and prepare the model, and bring the samples into its form."""
        model = prepare(source)
        unable = floats_of(model)
        if not layers_of(model):  # said before the samples are, which may not fit for the same reason
            raise UnsupportedModelError(_nothing_to_do(source, unable))
        ranges, search = _parts(samples_of(model, images, inputs, data), options)
        return cls(source, model, ranges, search, options, unable)

    @property
    def layers(self) -> int:
        """How many layers have weights of their own, in int8 or not."""
        return len({*layers_of(self.model), *self.unable})

    @property
    def most_floats(self) -> int:
        """How many of those that can be in int8 may stay in float32 all the same."""
        able = [name for name in layers_of(self.model) if name not in self.unable]
        return int(self.options.max_float_layers * len(able))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        first = next(iter(self.search.shapes.values()))
        return tuple(size for size in first if size)

    def judge(self) -> Judge:
        """What compares models with the float one: the file as it was given, not what was made of it."""
        return Judge(self.source, self.search, self.options.threads, output_loss=self.options.output_loss)

    def candidates(self) -> Iterator[Calibrated]:
        """The model, calibrated in one way after the other; `unable` is complete with the first."""
        ways = ("minmax", "percentile") if self.options.calibration == AUTO else (self.options.calibration,)
        for number, calibration in enumerate(ways):
            scheme = scheme_of_machine(calibration, self.options.reduce_range)
            logger.info("int8: %s, on %d samples", scheme, len(self.ranges))
            try:
                calibrated = calibrate(self.model, self._batches(), scheme, self.unable).with_end(self._mixed)
                calibrated = tried_out(calibrated, next(self._batches()))
            except UnsupportedModelError as error:
                if number == 0:
                    raise
                logger.warning("int8: no ranges by %s: %s", calibration, error)
                return
            if number == 0:
                self.unable = dict(calibrated.left)
                if not calibrated.layers:
                    raise UnsupportedModelError(_nothing_to_do(self.source, self.unable))
                _say_unable(self.source, self.unable)
                for reason in calibrated.end.reasons:
                    logger.info("%s: %s; what leads there from the last layers is left", self.source.name, reason)
            yield calibrated

    @cached_property
    def _mixed(self) -> tuple[str, ...]:
        """Outputs, and values to select from, that hold parts of unlike scale on some of the samples."""
        return mixed_values(self.model, islice(self._batches(), _LOOKED_AT))

    def _batches(self) -> Iterator[Arrays]:
        first = next(iter(specs_of(self.model)))
        fixed = first.dims[0] if first.dims and isinstance(first.dims[0], int) else None
        return self.ranges.batches(fixed or _CALIBRATION_BATCH, fixed=bool(fixed))


def _parts(samples: Samples, options: QuantizeOptions) -> tuple[Samples, Samples]:
    """Samples for the ranges and others for the comparison, drawn at random; half each where there are too few."""
    if len(samples) < 2:
        raise DataError(f"{samples.name} has {len(samples)} sample(s): at least two are needed, better some hundred")
    ranges = options.calibration_images
    if ranges + options.search_images > len(samples):
        ranges = max(1, round(len(samples) * ranges / (ranges + options.search_images)))
        ranges = min(ranges, len(samples) - 1)
    drawn = samples.sample(ranges + options.search_images, options.seed)
    return drawn.subset(np.arange(ranges)), drawn.subset(np.arange(ranges, len(drawn)))


def _nothing_to_do(source: Path, unable: Mapping[str, str]) -> str:
    """What to say where no layer can be in int8."""
    if not unable:
        return f"{source}: there is nothing to quantize, no layer has weights of its own"
    why = "; ".join(f"'{name}' {reason}" for name, reason in list(unable.items())[:_SOME])
    hint = ": convert or export it in float32 first" if " computes in " in why else ""
    return f"{source}: there is nothing to quantize, no layer can be in int8: {why}{hint}"


def _say_unable(source: Path, unable: Mapping[str, str]) -> None:
    for name, reason in list(unable.items())[:_SOME]:
        logger.warning("%s: '%s' stays in float32: %s", source.name, name, reason)
    if len(unable) > _SOME:
        logger.warning("%s: %d more layers stay in float32, the report names them", source.name, len(unable) - _SOME)

"""From stored pixels to what a network takes: (pixel / 255 - mean) / std, channels first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Images = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Preprocess:
    """How images become the network's input; stored beside every result so that it can be repeated.

    Attributes:
        image_size: height and width in pixels.
        mean: one value a channel, for pixels scaled to 0..1.
        std: one value a channel, for pixels scaled to 0..1.
        channels: 3 (red, green, blue) or 1 (luminance).

    Raises:
        UsageError: a value is out of range, or mean and std have another length than channels.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UsageError(f"images have 1 or 3 channels, not {self.channels}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UsageError(f"image size {self.image_size} is not a height and a width of at least 1 pixel")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UsageError(f"{name} has {len(values)} values for {self.channels} channel(s): give one a channel")
            if not all(isfinite(value) for value in values):
                raise UsageError(f"{name} {values} holds a value that is not finite")
        if min(self.std) <= 0:
            raise UsageError(f"std {self.std} must be above 0")

    @classmethod
    def of(
        cls,
        image_size: tuple[int, int],
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Self:
        """Return a Preprocess with defaults filled in.

        Defaults: the ImageNet mean and standard deviation for 3 channels, 0.5 and 0.5 for 1. A single
        value stands for all channels.
        """
        color = channels == 3
        return cls(
            image_size=image_size,
            mean=_a_channel("mean", mean, IMAGENET_MEAN if color else (0.5,), channels),
            std=_a_channel("std", std, IMAGENET_STD if color else (0.5,), channels),
            channels=channels,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input of the network: (channels, height, width)."""
        return (self.channels, *self.image_size)

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Return normalized images.

        Shapes: images: (batch, height, width, channels), uint8 in 0..255 or float32 in 0..1;
            returns (batch, channels, height, width), contiguous.
        """
        mean = np.asarray(self.mean)
        std = np.asarray(self.std)
        full_scale = 255.0 if images.dtype == np.uint8 else 1.0
        scale = (1.0 / (full_scale * std)).astype(np.float32).reshape(-1, 1, 1)
        shift = (-mean / std).astype(np.float32).reshape(-1, 1, 1)
        channels_first = images.transpose(0, 3, 1, 2)
        out = np.empty(channels_first.shape, np.float32)
        np.multiply(channels_first, scale, out=out)
        np.add(out, shift, out=out)
        return out

    def __str__(self) -> str:
        mean = ", ".join(f"{value:g}" for value in self.mean)
        std = ", ".join(f"{value:g}" for value in self.std)
        color = "RGB" if self.channels == 3 else "gray"
        return f"{color} {self.image_size[0]}x{self.image_size[1]}, scaled to 0..1, mean ({mean}), std ({std})"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; from_dict reads it back."""
        return {
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the Preprocess that to_dict described.

        Raises:
            UsageError: a field is missing or is not a number.
        """
        try:
            height, width = record["image_size"]
            return cls(
                image_size=(int(height), int(width)),
                mean=tuple(float(value) for value in record["mean"]),
                std=tuple(float(value) for value in record["std"]),
                channels=int(record["channels"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the record of the preprocessing is broken: {error!r} in {record!r}") from error


def _a_channel(
    name: str, values: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if values is None:
        return default
    if len(values) not in (1, channels):
        raise UsageError(f"{name} has {len(values)} values for {channels} channel(s): give one, or one a channel")
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)

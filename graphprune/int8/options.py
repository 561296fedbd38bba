"""How a file is quantized."""

from dataclasses import asdict, dataclass
from typing import Any

from graphprune.config import require_choice
from graphprune.int8.scheme import CALIBRATIONS
from graphprune.passes.errors import UsageError

__all__ = ["AUTO", "QuantizeOptions"]

AUTO = "auto"


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

"""A measure of one's own: what only the user can judge of two models' outputs, such as boxes, text or key points."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphprune.passes.errors import UsageError
from graphprune.runtime.onnx_session import one_line

__all__ = ["Metric", "OwnMetric"]

Metric = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], float]
"""Given the outputs of the dense model and of the slim one for a batch, by name: a number, more is better."""


class OwnMetric:
    """The mean of a metric over images.

    Args:
        metric: the user's own.
        names: of the outputs.
    """

    def __init__(self, metric: Metric, names: Sequence[str]) -> None:
        self._metric, self._names = metric, tuple(names)
        self._sum, self._images = 0.0, 0

    def see(self, dense: Sequence[np.ndarray], slim: Sequence[np.ndarray], rows: int, batch: int) -> None:
        """Take in the outputs of a batch, of which the first `rows` samples count; `batch` are those that were run.

        Raises:
            UsageError: the metric fails, or gives no finite number.
        """
        both = [
            {name: a[:rows] if a.ndim and len(a) == batch else a for name, a in zip(self._names, arrays, strict=True)}
            for arrays in (dense, slim)
        ]
        name = getattr(self._metric, "__qualname__", type(self._metric).__name__)
        try:
            value = float(self._metric(*both))
        except Exception as error:  # the user's own code: it may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
            raise UsageError(f"`metric`: {name} failed on the outputs of {rows} images: {why}") from error
        if not math.isfinite(value):
            raise UsageError(
                f"`metric`: {name} gave {value} for the outputs of {rows} images, where a number is needed"
            )
        self._sum += value * rows
        self._images += rows

    @property
    def value(self) -> float | None:
        """The mean over all images; None before there are any."""
        return self._sum / self._images if self._images else None

"""Post-training static quantization of an ONNX file with onnxruntime's quantizer, layer by layer at will.

    q = round(x / scale) + zero point          activations: 8 bits, one scale a tensor, from their range on images
    w = round(w / scale[c])                    weights: 8 bits signed and symmetric, one scale an output channel

QuantizeLinear and DequantizeLinear nodes are written around what is to be computed in int8 (QDQ); onnxruntime
fuses them into integer kernels. Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 2; Nagel et al. 2021, "A white paper on neural network quantization",
sections 2 and 3; onnxruntime.quantization.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from graphprune.int8.ends import FloatEnd, float_end
from graphprune.int8.inputs import specs_of
from graphprune.int8.layers import nodes_of_layers, nodes_that_stay
from graphprune.int8.scheme import Scheme
from graphprune.int8.surgery import (
    add_biases,
    axes_in_groups,
    remove_unused,
    separate,
    sort_nodes,
    without_biases,
)
from graphprune.passes.errors import UnsupportedModelError
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, one_line

__all__ = ["Calibrated", "calibrate"]

logger = logging.getLogger("graphprune")


# Their results are small and sensitive, or their integer kernels are slower than those in float32.
_NEVER = frozenset({"Softmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "Embed", "Where"})
_PERCENTILE = 99.99
_FAILURES: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, KeyError, TypeError, AttributeError, IndexError)
_WARNINGS_ALONE = 3  # onnxruntime's severity: errors, which arrive as exceptions as well


class Calibrated:
    """A float32 model and the ranges of its activations: quantizes any choice of layers.

    Attributes:
        model: the model, prepared.
        scheme: which integers stand for what.
        layers: names of the nodes with weights, in the order of computation, but for those that are left.
        left: layers that stay as they are in any choice, each with the reason.
        layers_alone: whether the operators between layers stay in float32.
        end: what stays in float32 behind them in any choice.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        scheme: Scheme,
        ranges: Any,
        left: Mapping[str, str] | None = None,
        *,
        layers_alone: bool = False,
        end: FloatEnd | None = None,
    ) -> None:
        self.model = model
        self.scheme = scheme
        self.layers_alone = layers_alone
        self.end = end or FloatEnd()
        self._given = ranges
        self._ranges, endless = _finite(ranges)
        self._nodes = nodes_of_layers(model.graph)
        self._floats = nodes_that_stay(model, endless)
        stay = {name: self._floats[name] for name in self._nodes if self._floats.get(name)}
        masked = {name: f"reads or gives '{value}', which goes to infinity" for name, value in stay.items()}
        self.left = {**masked, **(left or {})}
        self.layers = tuple(name for name in self._nodes if name not in self.left)
        self._last: tuple[Any, bytes] | None = None

    def leaving(self, left: Mapping[str, str], *, layers_alone: bool = False) -> "Calibrated":
        """The same with further layers that are left, or all operators that are none."""
        alone = layers_alone or self.layers_alone
        both = {**self.left, **left}
        return Calibrated(self.model, self.scheme, self._given, both, layers_alone=alone, end=self.end)

    def with_end(self, mixed: Collection[str]) -> "Calibrated":
        """The same, its end in float32 where that joins parts of unlike scale; `mixed` are known to hold some."""
        ranges = self._ranges.data.items()
        limits = {name: max(float(np.abs(end).max()) for end in found.range_value) for name, found in ranges}
        end = float_end(self.model.graph, limits, mixed)
        return Calibrated(self.model, self.scheme, self._given, self.left, layers_alone=self.layers_alone, end=end)

    def quantized(self, *, without: Iterable[str] = (), only: Iterable[str] | None = None) -> bytes:
        """The model with int8 in all layers but those `without`; or `only` in some, and nothing else.

        A layer comes with the additions and activations that run in one kernel with it: were they left in int8, the
        result would be rounded all the same.

        Raises:
            UnsupportedModelError: onnxruntime's quantizer cannot do it.
        """
        without = {*without, *self.left}
        if only is None and self.layers_alone:
            only = self.layers
        chosen = set(self.layers if only is None else only) - without
        key = None if only is None else frozenset(chosen), frozenset(without)
        if self._last is None or self._last[0] != key:  # the whole is tried out first, and judged then
            self._last = key, self._make(chosen, without, is_some=only is not None)
        return self._last[1]

    def _make(self, chosen: set[str], without: set[str], *, is_some: bool) -> bytes:
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        separate(model.graph, set(self._nodes) - chosen)
        transposed = [node for node in model.graph.node if node.op_type == "ConvTranspose" and node.name in chosen]
        biases = without_biases(model.graph, transposed)
        kinds = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
        try:
            with _silence():
                quantizer = QDQQuantizer(
                    model,
                    per_channel=True,
                    reduce_range=self.scheme.reduce_range,
                    weight_qType=QuantType.QInt8,
                    activation_qType=kinds[self.scheme.activations],
                    tensors_range=self._ranges,
                    nodes_to_quantize=(self._with_fused(chosen) or [""]) if is_some else [],  # none means all
                    nodes_to_exclude=[*self._with_fused(without), *self._floats, *self.end.nodes],
                    op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - _NEVER),
                    extra_options={
                        "WeightSymmetric": True,
                        "ActivationSymmetric": self.scheme.activations == "int8",
                        "TensorQuantOverrides": axes_in_groups(transposed),
                    },
                )
                quantizer.quantize_model()
        except _FAILURES as error:
            raise UnsupportedModelError(f"onnxruntime cannot quantize the model: {one_line(error)}") from error
        result = quantizer.model.model
        add_biases(result.graph, biases)
        remove_unused(result.graph)
        sort_nodes(result.graph)
        return result.SerializeToString()

    def _with_fused(self, layers: Iterable[str]) -> list[str]:
        return sorted(name for layer in layers for name in self._nodes.get(layer, ()))


def _finite(ranges: Any) -> tuple[Any, frozenset[str]]:
    """The ranges that have both ends, and the names of the values whose ranges have not, as of masks by infinity."""
    endless = {n for n, found in ranges.data.items() if any(np.isinf(end).any() for end in found.range_value)}
    if not endless:
        return ranges, frozenset()
    kept = type(ranges)(ranges.calibration_method, {n: r for n, r in ranges.data.items() if n not in endless})
    return kept, frozenset(endless)


def calibrate(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray | Sequence[np.ndarray]],
    scheme: Scheme,
    left: Mapping[str, str] | None = None,
) -> Calibrated:
    """Run a prepared model on samples, and note the range of every activation.

    Args:
        model: the model.
        batches: arrays for all inputs, in their order; or one array for the only one.
        scheme: which integers stand for what.
        left: layers that stay as they are, each with the reason.

    Raises:
        UnsupportedModelError: it cannot be run, or gives no numbers.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    inputs = [spec.name for spec in specs_of(model)]
    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[scheme.calibration]
    options = {"percentile": _PERCENTILE} if scheme.calibration == "percentile" else {}
    with tempfile.TemporaryDirectory() as folder, _silence():
        plain, augmented = Path(folder) / "float.onnx", Path(folder) / "augmented.onnx"
        onnx.save(model, plain)
        try:
            calibrator = create_calibrator(
                plain, None, augmented_model_path=str(augmented), calibrate_method=method, extra_options=options
            )
            for batch in batches:  # one at a time, so that the activations of all images never lie in memory at once
                arrays = [batch] if isinstance(batch, np.ndarray) else batch
                calibrator.collect_data(_Reader(dict(zip(inputs, arrays, strict=True))))
            ranges = calibrator.compute_data()
        except RUNTIME_ERRORS as error:
            raise UnsupportedModelError(f"the model cannot be run for its calibration: {one_line(error)}") from error
    for name, found in ranges.data.items():
        if any(np.isnan(end).any() for end in found.range_value):
            raise UnsupportedModelError(
                f"'{name}' has no finite numbers on these samples, so no range: look at how they are normalized, and "
                "at the model"
            )
    return Calibrated(model, scheme, ranges, left)


class _Reader:
    """One batch, in the way that onnxruntime's calibration asks for it."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([feed])

    def __iter__(self) -> "_Reader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantizer's prints, log lines and warnings away from the terminal."""
    root = logging.getLogger()
    level, printed = root.level, StringIO()
    ort.set_default_logger_severity(_WARNINGS_ALONE)
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # said of the ranges that come of it
            yield
    finally:
        root.setLevel(level)
        ort.set_default_logger_severity(2)
        if printed.getvalue().strip():
            logger.debug("printed during the quantization: %s", " ".join(printed.getvalue().split()))

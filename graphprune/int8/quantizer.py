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
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from graphprune.int8.scheme import OPSET, Scheme
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.clean import (
    EliminateDeadCodePass,
    EliminateIdentityPass,
    FoldLiteralsPass,
    UnlistLiteralsPass,
    ZeroDenormalsPass,
)
from graphprune.passes.onnx.fold_affine import FoldBatchNormPass, FoldBiasPass
from graphprune.passes.onnx.layout import GlobalPoolPass, SelectChannelsPass
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.resize import ResizeAllAxesPass
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, one_line
from graphprune.runtime.optimized import name_nodes

__all__ = [
    "Calibrated",
    "calibrate",
    "inputs_of",
    "layers_of",
    "prepare",
]

logger = logging.getLogger("graphprune")


_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What the float kernels of a layer compute along with it.
_FUSED = frozenset({"Add", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"})
# Their results are small and sensitive, or their integer kernels are slower than those in float32.
_NEVER = frozenset({"Softmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "Embed", "Where"})
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"})
_PERCENTILE = 99.99
_FAILURES: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, KeyError, TypeError, AttributeError, IndexError)
_WARNINGS_ALONE = 3  # onnxruntime's severity: errors, which arrive as exceptions as well


def prepare(source: Path) -> onnx.ModelProto:
    """Read a float32 file and bring it into the form that quantizes well: folded, in the layout, every node named.

    Raises:
        ModelLoadError: it cannot be read.
        UnsupportedModelError: it is quantized already, computes in another type than float32, or is too old for a scale
            a channel.
    """
    model = load_model(source)
    _require_float32(model, source)
    for tidy in (
        UnlistLiteralsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),  # the quantizer knows no others
        EliminateIdentityPass(),
        FoldLiteralsPass(),  # weights that are reshaped or transposed first
        FoldBatchNormPass(),
        FoldBiasPass(),
        SelectChannelsPass(),
        GlobalPoolPass(),
        ResizeAllAxesPass(),
        EliminateDeadCodePass(),
        ZeroDenormalsPass(),
    ):
        tidy(model)
    name_nodes(model.graph)
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    try:
        if opset < OPSET:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        return onnx.shape_inference.infer_shapes(proto)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModelError(f"{source}: cannot be prepared for quantization: {one_line(error)}") from error


def _require_float32(model: ir.Model, source: Path) -> None:
    if found := next((node for node in model.graph if node.op_type in _QUANTIZED), None):
        raise UnsupportedModelError(f"{source}: is quantized already, it holds {found.op_type} '{found.name}'")
    if wrong := next((value for node in model.graph for value in node.inputs if _is_other_float(node, value)), None):
        raise UnsupportedModelError(
            f"{source}: computes in {str(wrong.dtype).lower()} ('{wrong.name}'); only float32 files can be quantized: "
            "convert or export it in float32 first"
        )


def _is_other_float(node: ir.Node, value: ir.Value | None) -> bool:
    """Is a value what a layer reads, and in another floating point type than float32?"""
    kind = None if value is None or node.op_type not in _LAYERS else value.dtype
    return kind is not None and kind.is_floating_point() and kind != ir.DataType.FLOAT


class Calibrated:
    """A float32 model and the ranges of its activations: quantizes any choice of layers.

    Attributes:
        model: the model, prepared.
        scheme: which integers stand for what.
        layers: names of the nodes with weights, in the order of computation.
    """

    def __init__(self, model: onnx.ModelProto, scheme: Scheme, ranges: Any) -> None:
        self.model = model
        self.scheme = scheme
        self._ranges = ranges
        self._nodes = _nodes_of_layers(model.graph)
        self.layers = tuple(self._nodes)

    def quantized(self, *, without: Iterable[str] = (), only: Iterable[str] | None = None) -> bytes:
        """The model with int8 in all layers but those `without`; or `only` in some, and nothing else.

        A layer comes with the additions and activations that run in one kernel with it: were they left in int8, the
        result would be rounded all the same.

        Raises:
            UnsupportedModelError: onnxruntime's quantizer cannot do it.
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        chosen = set(self.layers if only is None else only) - {*without}
        _separate(model.graph, set(self.layers) - chosen)
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
                    nodes_to_quantize=[] if only is None else self._with_fused(only),
                    nodes_to_exclude=self._with_fused(without),
                    op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - _NEVER),
                    extra_options={"WeightSymmetric": True, "ActivationSymmetric": self.scheme.activations == "int8"},
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
        except _FAILURES as error:
            raise UnsupportedModelError(f"onnxruntime cannot quantize the model: {one_line(error)}") from error
        result = quantizer.model.model
        _remove_unused(result.graph)
        return result.SerializeToString()

    def _with_fused(self, layers: Iterable[str]) -> list[str]:
        return sorted(name for layer in layers for name in self._nodes[layer])


def _separate(graph: onnx.GraphProto, floats: set[str]) -> None:
    """Give layers that stay in float32 copies of the weights that they share with others: these become integers."""
    shared = {name for node in graph.node if node.name not in floats for name in node.input}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for at, name in enumerate(node.input if node.name in floats else ()):
            if name in shared and name in stored:
                copied = graph.initializer.add()
                copied.CopyFrom(stored[name])
                copied.name = node.input[at] = f"{name}_of_{node.name}"


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have to be given: literals may be listed as well."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def layers_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes with weights of their own."""
    return tuple(_nodes_of_layers(model.graph))


def _nodes_of_layers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Names of the nodes of every layer with weights: itself, and what is fused with it as nobody else reads it."""
    stored = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type not in _LAYERS or not stored & {*node.input[:2]}:
            continue
        found[node.name], last = [node.name], node
        while len(after := readers.get(last.output[0], [])) == 1 and last.output[0] not in outputs:
            last = after[0]
            if last.op_type not in _FUSED or last.name in taken:
                break
            found[node.name].append(last.name)
            taken.add(last.name)
    return found


def calibrate(model: onnx.ModelProto, batches: Iterable[np.ndarray], scheme: Scheme) -> Calibrated:
    """Run a prepared model with one input on images, and note the range of every activation.

    Raises:
        UnsupportedModelError: it cannot be run, has several inputs, or gives numbers that are not finite.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    inputs = [value.name for value in inputs_of(model)]
    if len(inputs) != 1:
        raise UnsupportedModelError(f"models with one input can be calibrated on images, this one has {len(inputs)}")
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
                calibrator.collect_data(_Reader(inputs[0], batch))
            ranges = calibrator.compute_data()
        except RUNTIME_ERRORS as error:
            raise UnsupportedModelError(f"the model cannot be run for its calibration: {one_line(error)}") from error
    for name, found in ranges.data.items():
        if not all(np.isfinite(limit).all() for limit in found.range_value):
            raise UnsupportedModelError(
                f"'{name}' has no finite numbers on these images, so no range: look at how they are normalized, and at "
                "the model"
            )
    return Calibrated(model, scheme, ranges)


class _Reader:
    """One batch, in the way that onnxruntime's calibration asks for it."""

    def __init__(self, name: str, batch: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([{name: batch}])

    def __iter__(self) -> "_Reader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _remove_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept: Sequence[TensorProto] = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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

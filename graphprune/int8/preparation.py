"""Bring a float32 file into the form that quantizes well: folded, in the layout, every node named."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from graphprune.int8.layers import LAYERS
from graphprune.int8.scheme import OPSET
from graphprune.passes.errors import ModelLoadError, UnsupportedModelError
from graphprune.passes.onnx.clean import (
    EliminateDeadCodePass,
    EliminateIdentityPass,
    FoldLiteralsPass,
    UnlistLiteralsPass,
    ZeroDenormalsPass,
)
from graphprune.passes.onnx.fold_affine import FoldBatchNormPass, FoldBiasPass
from graphprune.passes.onnx.layout import GlobalPoolPass, SelectChannelsPass
from graphprune.passes.onnx.model import free_negative_sizes, load_model
from graphprune.passes.onnx.opset import raise_opset
from graphprune.passes.onnx.plain_layers import OwnKernelsPass, PlainGemmPass, ShieldBodiesPass
from graphprune.passes.onnx.resize import ResizeAllAxesPass
from graphprune.runtime.onnx_inputs import NUMERIC_TYPES
from graphprune.runtime.onnx_session import one_line, open_session
from graphprune.runtime.optimized import name_nodes

__all__ = ["prepare"]

#: Convolutions and matrix products with what follows them, as onnxruntime's optimizer writes them.
_FUSED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv"})
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"})


def prepare(source: Path) -> onnx.ModelProto:
    """Read a float32 file and bring it into the form that quantizes well: folded, in the layout, every node named.

    Raises:
        ModelLoadError: it cannot be read.
        UnsupportedModelError: it is quantized already, holds weights that are no numbers, or is too old for a scale a
            channel.
    """
    model = load_model(source)
    if found := next((node for node in model.graph if node.op_type in _QUANTIZED), None):
        raise UnsupportedModelError(
            f"{source}: is quantized already, it holds {found.op_type} that gives '{found.outputs[0].name}'"
        )
    if found := next((node for node in model.graph if node.domain and node.op_type in _FUSED), None):
        raise UnsupportedModelError(
            f"{source}: was optimized by onnxruntime, it holds {found.domain}.{found.op_type}: quantize the file that "
            "it was made from"
        )
    for tidy in (
        UnlistLiteralsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),  # the quantizer knows no others
        EliminateIdentityPass(),
        FoldLiteralsPass(growth=4),  # weights that are reshaped, transposed, or cast from what they are stored in first
        PlainGemmPass(),
        FoldBatchNormPass(may_grow=True),
        FoldBiasPass(may_grow=True),
        SelectChannelsPass(),
        GlobalPoolPass(),
        ResizeAllAxesPass(),
        EliminateDeadCodePass(),
        ZeroDenormalsPass(),
        OwnKernelsPass(),
        ShieldBodiesPass(),
    ):
        tidy(model)
    name_nodes(model.graph)
    proto = ir.to_proto(ir.external_data.load_to_model(model))
    _require_finite(proto.graph, source)
    free_negative_sizes(proto)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    try:
        if opset < OPSET:
            proto = raise_opset(proto, OPSET)
        return _with_all_types(onnx.shape_inference.infer_shapes(proto))
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedModelError(f"{source}: cannot be prepared for quantization: {one_line(error)}") from error


def _with_all_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with types of what onnx cannot infer: onnxruntime's own operators give it, and the quantizer needs it.

    Where onnxruntime cannot load the model, it stays as it is; what it lacks is said when it is calibrated.
    """
    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if not unknown:
        return model
    try:
        session = open_session(model.SerializeToString(), optimize=False, outputs=unknown)
    except ModelLoadError:
        return model
    for value in session.get_outputs():
        kind = NUMERIC_TYPES.get(value.type)
        if value.name in unknown and kind is not None:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            graph.value_info.append(onnx.helper.make_tensor_value_info(value.name, dtype, value.shape))
    return model


def _require_finite(graph: onnx.GraphProto, source: Path) -> None:
    """Refuse weights from which nothing comes but numbers that are none."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input if node.op_type in LAYERS else ():
            if name in stored and not np.isfinite(onnx.numpy_helper.to_array(stored[name])).all():
                raise UnsupportedModelError(
                    f"{source}: the weight '{name}' of '{node.name}' is not finite, it holds NaN or infinity: take a "
                    "checkpoint from before its training diverged, or export the model again"
                )

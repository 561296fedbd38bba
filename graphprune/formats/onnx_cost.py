"""Cost of an ONNX file: multiply-accumulates of one sample, weights, and bytes. Needs no torch.

    Conv            elements(out) * (in channels / groups) * kernel
    ConvTranspose   elements(in)  * (out channels / groups) * kernel
    Gemm, MatMul    elements(out) * contracted size

Additions of biases, activations, pooling and normalization are not counted, nor is what is computed from weights
alone: runtimes do that once, when they load the file. What computes but cannot be counted is named in the result
instead of being left out in silence.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, shape_inference

from graphprune.passes.channels.operators import is_random
from graphprune.passes.errors import GraphPruneError, ModelLoadError
from graphprune.passes.onnx.layout import SELECTS
from graphprune.passes.onnx.wire import outline
from graphprune.runtime.onnx_inputs import input_shapes, input_specs, random_inputs
from graphprune.runtime.onnx_session import (
    RUNTIME_ERRORS,
    OnnxSource,
    external_files,
    label_of,
    load_proto,
    one_line,
    open_session,
    with_outputs,
)

__all__ = ["OnnxCost", "onnx_cost"]

Shape = tuple[int, ...]
Formula = Callable[[onnx.NodeProto, Mapping[str, Shape]], int]

_ONNX = ("", "ai.onnx")
_RUNTIME = ("com.microsoft", "com.microsoft.nchwc")  # onnxruntime's own

_FAILURES: tuple[type[Exception], ...] = (GraphPruneError, *RUNTIME_ERRORS)

_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
# Float inputs that set an operator up and are no weights.
_SETTINGS = {
    "Clip": {1, 2},
    "Resize": {1, 2},
    "Upsample": {1},
    "Pad": {2},
    "OneHot": {2},
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "QLinearConv": {1, 4, 6},
    "QLinearMatMul": {1, 4, 6},
    "QGemm": {1, 4, 7},
    "MatMulIntegerToFloat": {2, 3},
    "DynamicQuantizeMatMul": {2},
}
# Weights that are stored as integers.
_QUANTIZED_WEIGHTS = {
    "DequantizeLinear": {0},
    "QLinearConv": {3, 8},
    "QLinearMatMul": {3},
    "ConvInteger": {1},
    "MatMulInteger": {1},
    "QGemm": {3, 6},
    "MatMulIntegerToFloat": {1},
    "DynamicQuantizeMatMul": {1},
}
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)  # which read more than the node's inputs
# ONNX operators that compute and that no formula here covers.
_NO_FORMULA = frozenset({"Einsum", "LSTM", "GRU", "RNN", "Attention", "DeformConv", "If", "Loop", "Scan"})
# Onnxruntime's that neither convolve nor multiply matrices. What is not among them, or of another domain, is unknown.
_NOTHING_TO_COUNT = frozenset(
    "AveragePool BiasAdd BiasGelu BiasSoftmax BiasSplitGelu CropAndResize DequantizeLinear EmbedLayerNormalization "
    "ExpandDims FastGelu GatherND Gelu GlobalAveragePool GlobalMaxPool GridSample GroupNorm MaxPool MaxpoolWithMask "
    "MulInteger NhwcMaxPool Pad QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu "
    "QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Range "
    "ReduceSumInteger ReorderInput ReorderOutput RotaryEmbedding SkipGroupNorm SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization Trilu Unique Upsample".split()
)


@dataclass(frozen=True)
class OnnxCost:
    """Cost of one ONNX model.

    Attributes:
        macs: Multiply-accumulates of one sample; of one run, where the inputs do not say how many samples that is.
        params: Elements of the weights (float, or quantized) that the file stores; shape constants and settings are
            left out.
        size_bytes: Size of the file, external data included.
        uncounted: Nodes that compute but are missing from `macs`, each with the reason.
    """

    macs: int
    params: int
    size_bytes: int
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "uncounted": list(self.uncounted)}


def onnx_cost(source: OnnxSource, *, shapes: Mapping[str, Sequence[int]] | None = None) -> OnnxCost:
    """Return the cost of the ONNX model `source`.

    Args:
        source: Path of the file, or its content.
        shapes: Sizes of inputs that the file leaves open beyond the batch, by input name (the key "" stands for
            the only input; a first size of 0 leaves the batch open).

    Raises:
        ModelLoadError: The file is missing or is no ONNX model.
    """
    model = _outline(source)
    size_bytes = _bytes_of(source, model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = [value for value in model.graph.input if value.name not in stored]
    sizes = dict(shapes or {})
    if "" in sizes and len(feeds) == 1:
        sizes[feeds[0].name] = sizes.pop("")
    known = _infer_shapes(model, feeds, sizes)
    reason = ""
    if missing := _missing(model.graph.node, known):
        measured, reason = _measure_shapes(load_proto(source), label_of(source), missing, sizes)
        known.update(measured)
    macs, uncounted = _count_macs(_varying(model), known, reason)
    return OnnxCost(macs // _batch(feeds, known), _count_weights(model.graph), size_bytes, tuple(uncounted))


def size_of(source: OnnxSource) -> int:
    """Return the bytes of a model, external data included.

    Raises:
        ModelLoadError: The file or its data is missing, or is no ONNX model.
    """
    return _bytes_of(source, _outline(source))


def _outline(source: OnnxSource) -> onnx.ModelProto:
    """The model without its large weights, of which only the sizes count."""
    if isinstance(source, bytes):
        return load_proto(source)
    try:
        return onnx.load_model_from_string(outline(source))
    except (DecodeError, ValueError, OSError):
        return load_proto(source)  # which says what is wrong


def _batch(feeds: Sequence[onnx.ValueInfoProto], known: Mapping[str, Shape]) -> int:
    """Samples in a run: the first size that all inputs have in common; those that leave it open know best."""
    firsts: dict[bool, set[int]] = {True: set(), False: set()}
    for value in feeds:
        if len(shape := known.get(value.name, ())) > 1:
            firsts[not value.type.tensor_type.shape.dim[0].HasField("dim_value")].add(shape[0])
    found = firsts[True] or firsts[False]
    return max(1, *found) if len(found) == 1 else 1


def _infer_shapes(
    model: onnx.ModelProto, feeds: Sequence[onnx.ValueInfoProto], sizes: Mapping[str, Sequence[int]]
) -> dict[str, Shape]:
    """Return every shape that is fully known once a free batch is 1 and the other free sizes are `sizes`."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    names = {value.name for value in feeds}
    symbols: dict[str, int] = {}
    for value in fixed.graph.input:
        if value.name not in names:
            continue
        asked = sizes.get(value.name, ())
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            size = (asked[at] if at < len(asked) else 1) or 1  # 0 leaves the batch open
            if not dim.HasField("dim_value") and (asked or at == 0):
                symbols[dim.dim_param] = size
                dim.dim_value = size
    # The file states other values in terms of the same symbols, or of expressions of them ("2*batch").
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols and dim.dim_param:
                dim.dim_value = symbols[dim.dim_param]
            elif dim.dim_param:
                dim.ClearField("dim_param")
    try:
        inferred = shape_inference.infer_shapes(fixed, data_prop=True)
    except (shape_inference.InferenceError, ValueError):
        inferred = fixed
    known = {tensor.name: tuple(tensor.dims) for tensor in (*model.graph.initializer, *_constants(model.graph.node))}
    known |= {sparse.values.name: tuple(sparse.dims) for sparse in model.graph.sparse_initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            known[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return known


def _missing(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Shape]) -> list[str]:
    """Values whose shape a formula needs and that inference did not find."""
    needed = (name for node in nodes if _formula(node) for name in (*node.input, *node.output) if name)
    return [name for name in dict.fromkeys(needed) if name not in known]


def _measure_shapes(
    model: onnx.ModelProto, label: str, missing: Sequence[str], sizes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Shape], str]:
    """Run the model once and look at the shapes of the values `missing`; say why that failed, if it did."""
    try:
        session = open_session(with_outputs(model, missing), optimize=False, name=label)
        specs = input_specs(session, label)
        feeds = random_inputs(specs, input_shapes(specs, shapes=sizes, name=label))
        values = session.run(list(missing), feeds)
    except _FAILURES as error:
        return {}, one_line(error)
    return {name: tuple(value.shape) for name, value in zip(missing, values, strict=True)}, ""


def _varying(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes whose results depend on what the model is given, or on chance."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    fixed |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    for node in model.graph.node:
        read = {name for name in node.input if name}
        is_fixed = bool(read) and read <= fixed and not is_random(node.op_type)
        if node.op_type == "Constant" or (is_fixed and not any(at.type in _GRAPHS for at in node.attribute)):
            fixed.update(node.output)
        else:
            yield node


def _count_macs(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Shape], reason: str) -> tuple[int, list[str]]:
    total = 0
    uncounted = []
    for node in nodes:
        if _only_selects(node):
            continue
        kind = node.op_type if node.domain in _ONNX else f"{node.domain}.{node.op_type}"
        label = f"{kind} '{node.name or node.output[0]}'"
        if formula := _formula(node):
            try:
                total += formula(node, known)
            except KeyError as error:
                uncounted.append(
                    f"{label}: the shape of '{error.args[0]}' is unknown" + (f" ({reason})" if reason else "")
                )
        elif _is_unknown(node):
            uncounted.append(f"{label}: no formula for this operator")
    return total, uncounted


def _only_selects(node: onnx.NodeProto) -> bool:
    """A convolution by zeros and ones that stands for data movement is no work of the network's."""
    return any(entry.key == SELECTS for entry in node.metadata_props)


def _formula(node: onnx.NodeProto) -> Formula | None:
    return _FORMULAS.get(node.op_type) if node.domain in (*_ONNX, *_RUNTIME) else None


def _is_unknown(node: onnx.NodeProto) -> bool:
    """May a node that has no formula compute something that counts?"""
    if node.domain in _ONNX:
        return node.op_type in _NO_FORMULA
    return node.domain not in _RUNTIME or node.op_type not in _NOTHING_TO_COUNT


def _conv_macs(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    weight = known[node.input[_CONV_WEIGHT.get(node.op_type, 1)]]  # (out, in / groups, *kernel)
    return math.prod(known[node.output[0]]) * math.prod(weight[1:])


def _conv_transpose_macs(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    return math.prod(known[node.input[0]]) * math.prod(known[node.input[1]][1:])  # weight (in, out / groups, *kernel)


def _gemm_macs(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    return math.prod(known[node.output[0]]) * known[node.input[0]][0 if _is_set(node, "transA") else 1]


def _matmul_macs(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    """With `transBatchA` the rows come before the batch."""
    rows = 0 if _is_set(node, "transBatchA") else -2
    return math.prod(known[node.output[0]]) * known[node.input[0]][rows if _is_set(node, "transA") else -1]


def _is_set(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


_CONV_WEIGHT = {"QLinearConv": 3}
_FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv", "NhwcFusedConv"), _conv_macs),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _conv_transpose_macs),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm"), _gemm_macs),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat"), _matmul_macs),
    **dict.fromkeys(("DynamicQuantizeMatMul", "GemmFastGelu", "TransposeMatMul", "FusedMatMul"), _matmul_macs),
    "FusedMatMulActivation": _matmul_macs,
}


def _count_weights(graph: onnx.GraphProto) -> int:
    """Elements of every stored tensor that some node uses as a weight; a tensor used twice counts once.

    Of one that is stored sparse, those that are stored.
    """
    return sum(math.prod(tensor.dims) for tensor in _weights(graph, {}).values())


def _weights(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> dict[int, onnx.TensorProto]:
    """The weights of a graph and of the bodies of its control flow, by identity; `outer`: what it can read besides."""
    sparse = [tensor.values for tensor in graph.sparse_initializer]
    own = (*graph.initializer, *sparse, *_constants(graph.node))
    stored = {**outer, **{tensor.name: tensor for tensor in own}}
    weights: dict[int, onnx.TensorProto] = {}
    selections = {name for node in graph.node if _only_selects(node) for name in node.input[1:]}
    for node in graph.node:
        for body in _bodies(node):
            weights |= _weights(body, stored)
        if _only_selects(node) or selections & {*node.output}:
            continue
        for at, name in enumerate(node.input):
            tensor = stored.get(name)
            if tensor is None:
                continue
            is_setting = at in _SETTINGS.get(node.op_type, ()) or not tensor.dims
            if at in _QUANTIZED_WEIGHTS.get(node.op_type, ()) or (tensor.data_type in _FLOATS and not is_setting):
                weights[id(tensor)] = tensor
    return weights


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors of Constant nodes, under the name of the value they produce."""
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            yield tensor


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node of control flow."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _bytes_of(source: OnnxSource, model: onnx.ModelProto) -> int:
    if isinstance(source, bytes):
        return len(source)
    path = Path(source)
    files = [path, *(path.parent / name for name in external_files(model) if not os.path.isabs(name))]
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise ModelLoadError(f"{path}: its weights cannot be read from {error.filename}") from error

"""Reading and writing ONNX models as onnx_ir graphs, and evaluating small integer tensors of them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from graphprune.passes.errors import ModelLoadError
from graphprune.passes.onnx.contract import find_fault
from graphprune.passes.onnx.functions import in_one_opset, inline_functions
from graphprune.passes.onnx.opset import raise_opset
from graphprune.passes.onnx.wire import outline

#: Key of a model's own notes, which no file holds: the path that it was read from.
SOURCE = "graphprune.source"

#: What reading a broken file raises.
_BROKEN = (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, RuntimeError, AssertionError)

#: onnx's reference implementation knows one meaning of these, that from this opset on.
_EVALUATED_SINCE = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "Resize": 11, "Upsample": 11}

#: Integer tensors up to this size are evaluated: shapes, axes, indices of channels.
SMALL = 1 << 16

#: Small numbers of other types are known too: scales of a Resize, limits, zero points.
FEW = 1 << 10

#: Types that weights and masks are stored in. Wider integers are sizes, axes and indices.
WEIGHT_TYPES = frozenset(
    kind
    for kind in ir.DataType
    if kind.is_floating_point()
    or kind.name in ("INT16", "UINT16", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "BOOL")
)

#: Inputs that hold a bias in the precision of the sums: 32 bits.
_QUANTIZED_BIAS = {("QLinearConv", 8), ("QGemm", 6), ("DequantizeLinear", 0), ("DequantizeLinear", 2)}


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; weights stay on disk until they are needed, model-local functions without a rule are inlined.

    Raises:
        ModelLoadError: the file is missing, is no ONNX model, or refers to data that is not there.
        UnsupportedModelError: a local function is written in another opset, and cannot be converted.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelLoadError(f"{source}: no such file" if not source.exists() else f"{source}: is a folder, not a file")
    try:
        message = in_one_opset(onnx.load_model_from_string(outline(source)), str(source))
        free_negative_sizes(message)
        _fill_sparse(message.graph)
        model = ir.from_proto(message)
        model.meta[SOURCE] = os.fspath(source)
        _set_base(model, source.resolve())
    except (DecodeError, *_BROKEN) as error:
        raise ModelLoadError(f"{source}: is not an ONNX model ({_first_line(error)})") from error
    if not len(model.graph) and not model.graph.outputs:
        raise ModelLoadError(f"{source}: is not an ONNX model (it has no graph)")
    try:
        if model.functions:
            inline_functions(model)
        if not _is_sorted(model.graph):
            model.graph.sort()  # onnxruntime reads such files, and its float16 converter writes them
        fault = find_fault(model) or _find_lost_data(model)
    except _BROKEN as error:
        fault = _first_line(error)
    if fault:
        raise ModelLoadError(f"{source}: is not a valid ONNX model ({fault})")
    return model


def free_negative_sizes(message: onnx.ModelProto) -> None:
    """Make free what a file calls -1, in place: sizes of inputs and outputs that old converters leave open so."""
    for value in (*message.graph.input, *message.graph.output, *message.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")


def _is_sorted(graph: ir.Graph) -> bool:
    """Does every node stand behind those whose results it, or a body of its, reads?"""
    done: set[ir.Node] = set()
    for node in graph:
        for value in (*node.inputs, *captured_values(node)):
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is graph and producer not in done:
                return False
        done.add(node)
    return True


def _fill_sparse(graph: onnx.GraphProto) -> None:
    """Write sparse literals out, as onnxruntime does when it loads them: onnx_ir knows none."""
    for sparse in graph.sparse_initializer:
        values, at = (onnx.numpy_helper.to_array(part) for part in (sparse.values, sparse.indices))
        full = np.zeros(tuple(sparse.dims), dtype=values.dtype)
        full[tuple(at.T) if at.ndim == 2 else np.unravel_index(at, full.shape)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(full, sparse.values.name))
    graph.ClearField("sparse_initializer")


def _set_base(model: ir.Model, source: Path) -> None:
    """Weights that lie in the file itself are views of one mapping of it; others must lie beside it."""
    ir.external_data.set_base_dir(model.graph, source.parent)
    inside: NDArray[np.uint8] | None = None
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or os.fspath(tensor.location) != os.fspath(source):
            continue
        tensor.base_dir = ""
        start, end = tensor.offset or 0, (tensor.offset or 0) + tensor.nbytes
        if tensor.dtype.bitwidth >= 8 and tensor.length == tensor.nbytes:
            inside = np.memmap(source, dtype=np.uint8, mode="r") if inside is None else inside
            numbers = inside[start:end].view(np.ndarray).view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
            value.const_value = ir.Tensor(
                numbers,
                dtype=tensor.dtype,
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )


def _find_lost_data(model: ir.Model) -> str | None:
    """The first literal whose numbers are not where the file says, or are not as many, or None."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            path, end = Path(tensor.path), (tensor.offset or 0) + tensor.nbytes
            if not path.is_file():
                return f"its weights are in {path.name}, which is not there"
            if path.stat().st_size < end or (tensor.length or tensor.nbytes) != tensor.nbytes:
                return f"the numbers of '{value.name}' are not all in {path.name}"
            tensor.numpy()  # only maps the file, and finds what else is wrong with it
        elif tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.numpy().shape != tuple(tensor.shape):
            return f"'{value.name}' has other sizes than numbers"
        elif isinstance(tensor, ir.TensorProtoTensor) and len(tensor.tobytes()) != tensor.nbytes:
            return f"'{value.name}' has no numbers"
    return None


def is_standard(domain: str) -> bool:
    """Is a domain that of ONNX's own operators?"""
    return domain in ("", "ai.onnx")


def is_quantized_bias(value: ir.Value) -> bool:
    """Is a 32-bit integer tensor a bias, not sizes or indices?"""
    return any((use.node.op_type, use.idx) in _QUANTIZED_BIAS for use in value.uses())


def _first_line(error: BaseException) -> str:
    """What went wrong at the bottom; what lies above it are the calls that led there."""
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def free_sizes(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """What the names of free sizes stand for when inputs have these shapes (the key "" stands for the only input).

    A size of 0 stays free. So does a batch of 1, in which samples cannot be told from what is alike in all of them.
    """
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        shape = (shapes or {}).get(value.name or "", (shapes or {}).get("", ()) if len(model.graph.inputs) == 1 else ())
        for index, (dim, size) in enumerate(zip(value.shape or (), shape, strict=False)):
            if not isinstance(dim, int) and size > (index == 0):
                found[free_name(value, index, dim)] = size
    return found


def free_name(value: ir.Value, index: int, dim: ir.SymbolicDim) -> str:
    """What a free size is called; sizes without a name have nothing to do with one another."""
    return dim.value or f"{value.name}:{index}"


def shape_types(shape: tuple[int, ...], dtype: ir.DataType | None) -> onnx.TypeProto:
    """The ONNX type of a tensor of known sizes."""
    return onnx.helper.make_tensor_type_proto(int(dtype or ir.DataType.FLOAT), shape)


def evaluate(node: ir.Node, inputs: list[NDArray[Any] | None], opsets: dict[str, int]) -> list[NDArray[Any]] | None:
    """The results of one node on known numbers, by onnx's reference implementation; None where it has no right one.

    Of some operators it only has the later versions (DequantizeLinear: from 19), and takes older nodes for such ones
    (Softmax: from 13) or refuses them: the node is converted.
    """
    standard = node.domain in ("", "ai.onnx")
    if standard and _is_miscomputed(node):
        return None
    names = ["" if value is None else f"i{index}" for index, value in enumerate(inputs)]
    try:
        proto = ir.serde.serialize_node(node)
    except ir.serde.SerdeError:  # something in it that no message can hold, like a name that is no text
        return None
    proto.ClearField("input")
    proto.input.extend(names)
    proto.ClearField("output")
    proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
    given = [(name, value) for name, value in zip(names, inputs, strict=True) if value is not None]
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in given
        ],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    )
    changed = standard and opsets.get("", opsets.get("ai.onnx", 1)) < _EVALUATED_SINCE.get(node.op_type, 0)
    found = None if changed else _run(model, dict(given))
    if found is None and standard:
        with suppress(*_BROKEN):
            found = _run(raise_opset(model, onnx.defs.onnx_opset_version()), dict(given))
    return found


def _is_miscomputed(node: ir.Node) -> bool:
    """Does onnx's reference implementation give other numbers than are specified?"""
    rounds_up = "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int() == 1
    return node.op_type == "LRN" or (node.op_type == "AveragePool" and rounds_up)


def _run(model: onnx.ModelProto, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]] | None:
    try:
        return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, given)]
    except (*_BROKEN, ArithmeticError, MemoryError):
        return None


def attributes(node: ir.Node) -> dict[str, Any]:
    """Attributes as plain Python values."""
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = value.numpy()
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node of control flow holds."""
    return [graph for attribute in node.attributes.values() for graph in _graphs(attribute)]


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values that the bodies of a node name, as inputs of their nodes or as results."""
    graphs = [graph for a in node.attributes.values() for graph in _graphs(a)]
    inner = [value for graph in graphs for step in graph.all_nodes() for value in step.inputs]
    results = [value for graph in graphs for value in graph.outputs]
    results += [
        v
        for graph in graphs
        for step in graph.all_nodes()
        for a in step.attributes.values()
        for g in _graphs(a)
        for v in g.outputs
    ]
    return [value for value in (*inner, *results) if value is not None]


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []

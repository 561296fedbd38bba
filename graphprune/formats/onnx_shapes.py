"""Sizes of all values of an ONNX file, once its inputs have theirs. Needs no torch.

They are inferred. What a file itself says of the values inside is not believed, but for the results of operators that
nobody knows: tools that change a file often leave it as it was. What inference does not find is looked at by running
the file once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import shape_inference

from graphprune.passes.errors import GraphPruneError
from graphprune.passes.onnx.sizes import INFERENCE_ERRORS, infer_results, is_known, sizes_of
from graphprune.runtime.onnx_inputs import input_shapes, input_specs, random_inputs
from graphprune.runtime.onnx_session import RUNTIME_ERRORS, one_line, open_session, with_outputs

__all__ = ["Shape", "constants", "infer_shapes", "measure_shapes"]

Shape = tuple[int, ...]

_FAILURES: tuple[type[Exception], ...] = (GraphPruneError, *RUNTIME_ERRORS)

#: Integer tensors up to this size may be sizes or axes.
_SMALL = 1 << 10


def infer_shapes(
    model: onnx.ModelProto, feeds: Sequence[onnx.ValueInfoProto], sizes: Mapping[str, Sequence[int]]
) -> dict[str, Shape]:
    """Return every shape that is fully known once a free batch is 1 and the other free sizes are `sizes`.

    Args:
        model: the model, local functions inlined; large weights may be missing.
        feeds: those of its inputs that are no weights.
        sizes: sizes by input name; a first size of 0 leaves the batch free.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    _fix_sizes(fixed, {value.name for value in feeds}, sizes)
    _forget_stated(fixed)
    try:
        inferred = shape_inference.infer_shapes(fixed, data_prop=True)
    except (shape_inference.InferenceError, ValueError):
        inferred = fixed
    types = {value.name: value.type for value in (*inferred.graph.input, *inferred.graph.value_info)}
    types |= {value.name: value.type for value in inferred.graph.output}
    for tensor in (*model.graph.initializer, *constants(model.graph.node)):
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for sparse in model.graph.sparse_initializer:
        types[sparse.values.name] = onnx.helper.make_tensor_type_proto(sparse.values.data_type, sparse.dims)
    _infer_the_rest(model, types)
    found = {name: sizes_of(kind) for name, kind in types.items()}
    return {name: shape for name, shape in found.items() if shape is not None}


def _fix_sizes(model: onnx.ModelProto, feeds: set[str], sizes: Mapping[str, Sequence[int]]) -> None:
    """Write numbers where the inputs, and what is said of values inside, have free sizes, in place."""
    symbols: dict[str, int] = {}
    for value in model.graph.input:
        if value.name not in feeds:
            continue
        asked = sizes.get(value.name, ())
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            size = (asked[at] if at < len(asked) else 1) or 1  # 0 leaves the batch open
            if not dim.HasField("dim_value") and (asked or at == 0):
                symbols[dim.dim_param] = size
                dim.dim_value = size
    for value in (*model.graph.input, *model.graph.value_info):  # the same size under the same name
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols and dim.dim_param:
                dim.dim_value = symbols[dim.dim_param]
            elif dim.dim_param:
                dim.ClearField("dim_param")


def _forget_stated(model: onnx.ModelProto) -> None:
    """Drop what the file says of sizes inside, in place; of operators that nobody knows, nobody else tells them."""
    foreign = {name for node in model.graph.node if not is_known(node) for name in node.output}
    stated = [value for value in model.graph.value_info if value.name in foreign]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(stated)
    for value in model.graph.output:
        if value.name not in foreign:
            value.type.tensor_type.ClearField("shape")


def _infer_the_rest(model: onnx.ModelProto, types: dict[str, onnx.TypeProto]) -> None:
    """Go on node by node where onnx's inference of the whole stopped: at operators that it does not define."""
    numbers = {
        tensor.name: tensor
        for tensor in (*model.graph.initializer, *constants(model.graph.node))
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and np.prod(tensor.dims) <= _SMALL
    }
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        if all(sizes_of(types.get(name)) is not None for name in node.output if name):
            continue
        known = {name: types[name] for name in node.input if sizes_of(types.get(name)) is not None}
        if len(known) < len({name for name in node.input if name}):
            continue
        given = {name: numbers[name] for name in node.input if name in numbers}
        try:
            types.update(infer_results(node, known, given, opsets, model.ir_version))
        except INFERENCE_ERRORS:
            continue


def constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors of Constant nodes, under the name of the value they produce."""
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            yield tensor


def measure_shapes(
    model: onnx.ModelProto,
    label: str,
    missing: Sequence[str],
    sizes: Mapping[str, Sequence[int]],
    inputs: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, Shape], str]:
    """Run the model once and look at the shapes of the values `missing`; say why that failed, if it did.

    `inputs`: arrays that it takes; by default random ones.
    """
    try:
        session = open_session(with_outputs(model, missing), optimize=False, name=label)
        specs = input_specs(session, label)
        feeds = inputs or random_inputs(specs, input_shapes(specs, shapes=sizes, name=label))
        values = session.run(list(missing), dict(feeds))
    except _FAILURES as error:
        return {}, one_line(error)
    return {name: tuple(value.shape) for name, value in zip(missing, values, strict=True)}, ""

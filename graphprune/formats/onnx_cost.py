"""Cost of an ONNX file: multiply-accumulates of one sample, weights, and bytes. Needs no torch.

What is computed from weights alone is not counted: runtimes do that once, when they load the file. Of nodes that
compute the same from the same, one is counted: runtimes merge them. What computes but cannot be counted is named in the
result instead of being left out in silence. The formulas are those of `passes/onnx/macs.py`; the channel analysis
counts the same (`ChannelGraph.cost`).
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor

from graphprune.formats.onnx_shapes import Shape, constants, infer_shapes, measure_shapes
from graphprune.passes.channels.cost import samples_in
from graphprune.passes.channels.operators import is_random
from graphprune.passes.errors import ModelLoadError
from graphprune.passes.onnx.functions import inlined
from graphprune.passes.onnx.layout import SELECTS
from graphprune.passes.onnx.macs import Sized, UncountedError, has_formula, macs_of
from graphprune.passes.onnx.model import free_negative_sizes
from graphprune.passes.onnx.own import is_own, macs_by_rule
from graphprune.passes.onnx.sizes import operator_name
from graphprune.passes.onnx.weights import is_weight
from graphprune.passes.onnx.wire import LARGE, outline
from graphprune.runtime.onnx_session import OnnxSource, external_files, label_of, load_proto

__all__ = ["OnnxCost", "onnx_cost"]

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)  # which read more than the node's inputs


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


def onnx_cost(
    source: OnnxSource,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> OnnxCost:
    """Return the cost of the ONNX model `source`.

    Args:
        source: Path of the file, or its content.
        shapes: Sizes of inputs that the file leaves open beyond the batch, by input name (the key "" stands for
            the only input; a first size of 0 leaves the batch open).
        inputs: Arrays by input name that the model takes, for a file of which some sizes are only known once it is
            run; by default random ones.

    Raises:
        ModelLoadError: The file is missing or is no ONNX model.
    """
    model = _outline(source)
    size_bytes = _bytes_of(source, model)
    _read_small(model, source)
    model = inlined(model)
    free_negative_sizes(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = [value for value in model.graph.input if value.name not in stored]
    sizes = dict(shapes or {})
    if "" in sizes and len(feeds) == 1:
        sizes[feeds[0].name] = sizes.pop("")
    known = infer_shapes(model, feeds, sizes)
    counted = list(_counted(model))
    reason = ""
    if missing := _missing(counted, known):
        measured, reason = measure_shapes(load_proto(source), label_of(source), missing, sizes, inputs)
        known.update(measured)
    macs, uncounted = _count_macs(counted, known, reason)
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


def _read_small(model: onnx.ModelProto, source: OnnxSource) -> None:
    """Read the small ones of the tensors that lie in another file, in place: shapes may depend on them."""
    if isinstance(source, bytes):
        return
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) * 8 < LARGE:
            load_external_data_for_tensor(tensor, os.fspath(Path(source).parent))
            tensor.data_location = onnx.TensorProto.DEFAULT


def _batch(feeds: Sequence[onnx.ValueInfoProto], known: Mapping[str, Shape]) -> int:
    """Samples in a run, as the inputs tell it."""
    return samples_in(
        (known[value.name], not value.type.tensor_type.shape.dim[0].HasField("dim_value"))
        for value in feeds
        if known.get(value.name)
    )


def _counted(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes whose work counts.

    1. Their results depend on what the model is given, or on chance.
    2. No other node before them computes the same from the same.
    3. They do more than to select: a convolution by zeros and ones that stands for data movement is no work of the
       network's.
    """
    fixed = {tensor.name for tensor in model.graph.initializer}
    fixed |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    same: dict[str, str] = {}  # result of a node -> that of another which is the same
    seen: dict[bytes, Sequence[str]] = {}
    for node in model.graph.node:
        read = {name for name in node.input if name}
        by_chance, has_bodies = is_random(node.op_type), any(at.type in _GRAPHS for at in node.attribute)
        is_fixed = bool(read) and read <= fixed and not by_chance and not has_bodies
        if is_fixed or node.op_type in ("Constant", "Shape", "Size"):  # sizes, once the inputs have theirs
            fixed.update(node.output)
            continue
        if _is_identity(node):
            same[node.output[0]] = same.get(node.input[0], node.input[0])
            continue
        if not by_chance and not has_bodies:
            first = seen.setdefault(_form(node, same), node.output)
            if first is not node.output:
                same.update((mine, same.get(its, its)) for mine, its in zip(node.output, first, strict=False))
                continue
        if not _only_selects(node):
            yield node


def _is_identity(node: onnx.NodeProto) -> bool:
    """Does a node give what it reads? A Dropout does, outside of training."""
    return node.op_type == "Identity" or (
        node.op_type == "Dropout" and len(node.input) < 3 and not any(at.name == "is_test" for at in node.attribute)
    )


def _form(node: onnx.NodeProto, same: Mapping[str, str]) -> bytes:
    """What two nodes have in common that compute the same."""
    form = onnx.NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
    form.attribute.sort(key=lambda attribute: attribute.name)
    form.input.extend(same.get(name, name) for name in node.input)
    form.output.extend(f"{at}" for at, name in enumerate(node.output) if name)
    return form.SerializeToString(deterministic=True)


def _missing(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Shape]) -> list[str]:
    """Values whose shape a formula needs and that inference did not find."""
    needed = (name for node in nodes if _needs_sizes(node) for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(needed) if name and name not in known]


def _needs_sizes(node: onnx.NodeProto) -> bool:
    return has_formula(node.op_type, node.domain) or is_own(node)


def _count_macs(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Shape], reason: str) -> tuple[int, list[str]]:
    total = 0
    uncounted = []
    for node in nodes:
        attrs = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        try:
            sized = Sized(node.op_type, node.domain, attrs, node.input, node.output, known)
            total += macs_by_rule(node, sized) if is_own(node) else macs_of(sized)
        except UncountedError as error:
            why = f"{error} ({reason})" if reason and _needs_sizes(node) else f"{error}"
            uncounted.append(f"{operator_name(node)} '{node.name or node.output[0]}': {why}")
    return total, uncounted


def _only_selects(node: onnx.NodeProto) -> bool:
    return any(entry.key == SELECTS for entry in node.metadata_props)


def _count_weights(graph: onnx.GraphProto) -> int:
    """Elements of every stored tensor that some node uses as a weight; a tensor used twice counts once.

    Of one that is stored sparse, those that are stored.
    """
    return sum(math.prod(tensor.dims) for tensor in _weights(graph, {}).values())


def _weights(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> dict[int, onnx.TensorProto]:
    """The weights of a graph and of the bodies of its control flow, by identity; `outer`: what it can read besides."""
    sparse = [tensor.values for tensor in graph.sparse_initializer]
    own = (*graph.initializer, *sparse, *constants(graph.node))
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
            if tensor is not None and is_weight(node.op_type, at, tensor.data_type, len(tensor.dims)):
                weights[id(tensor)] = tensor
    return weights


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

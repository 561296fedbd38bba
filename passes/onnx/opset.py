"""Bring a model to a later opset in which it computes the same.

    Resize, opset 10, and Upsample:   position = i / scale                        (asymmetric)
                                      nearest: rounded down, or up where the result is smaller
    Resize, opset 11, by default:     position = (i + 0.5) / scale - 0.5          (half_pixel)

onnx's version converter turns the first into the second, silently, and leaves a Hardmax as it is, whose axis means
another thing from opset 13. Source: ONNX spec, Resize-10, Resize-11, Upsample-9, Hardmax-11, Hardmax-13; onnxruntime,
`core/providers/cpu/tensor/upsamplebase.h`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["raise_opset"]

#: From here on a Resize says where its positions lie, and a Hardmax looks along one axis alone.
_RESIZE_SAYS_SINCE, _HARDMAX_SINCE = 11, 13

_SCALES = 2  # of the inputs of a Resize


def raise_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the same function in opset `version`; the model holds no local functions.

    Raises:
        RuntimeError, ValueError: it cannot be written there, or onnx's converter cannot do it.
    """
    before = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if before < _HARDMAX_SINCE <= version and any(node.op_type == "Hardmax" for node in _nodes(model.graph)):
        raise ValueError(f"Hardmax means another thing from opset {_HARDMAX_SINCE}")
    raised = onnx.version_converter.convert_version(model, version)
    if before < _RESIZE_SAYS_SINCE <= version:
        known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _literals(raised.graph)}
        for node in _nodes(raised.graph):
            if node.op_type == "Resize":
                _say_positions(node, known)
    return raised


def _say_positions(node: onnx.NodeProto, known: Mapping[str, NDArray[np.floating]]) -> None:
    scales = known.get(node.input[_SCALES], np.ones(1))
    if (scales < 1).any() and (scales > 1).any():
        raise ValueError(f"Resize '{node.name}' enlarges along one axis and makes smaller along another")
    rounding = "ceil" if (scales < 1).any() else "floor"
    modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
    node.attribute.extend(onnx.helper.make_attribute(name, mode) for name, mode in modes.items())


def _literals(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Small literals by the names that nodes know them by."""
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1:
            yield tensor
    for node in _nodes(graph):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
                named = onnx.TensorProto()
                named.CopyFrom(attribute.t)
                named.name = node.output[0]
                yield named


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of the standard domain, those in bodies of If, Loop and Scan included."""
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)

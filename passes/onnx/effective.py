"""The weights that an ONNX graph computes from its literals."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.computed_weights import ComputedWeights, collect
from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.operators import is_random
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.analyze import OnnxFrontEnd
from graphprune.passes.onnx.computed import is_literal
from graphprune.passes.onnx.contract import literal
from graphprune.passes.onnx.model import evaluate

__all__ = ["computed_weights"]


def computed_weights(graph: ChannelGraph) -> ComputedWeights:
    """What the layers of an analyzed ONNX graph read that is computed from literals."""
    front: OnnxFrontEnd = graph.front_end
    opsets = dict(front.model.graph.opset_imports)
    known: dict[ir.Value, tuple[NDArray[Any] | None, frozenset[str]]] = {}

    def numbers(value: ir.Value) -> tuple[NDArray[Any] | None, frozenset[str]]:
        if value not in known:
            known[value] = (None, frozenset())  # a body that reads itself ends here
            known[value] = _evaluated(value)
        return known[value]

    def _evaluated(value: ir.Value) -> tuple[NDArray[Any] | None, frozenset[str]]:
        if (tensor := literal(front.model, value)) is not None:
            return tensor.numpy(), frozenset({value.name or ""})
        producer = value.producer()
        if producer is None or is_random(producer.op_type):
            return None, frozenset()
        given = [None if item is None else numbers(item) for item in producer.inputs]
        read = frozenset().union(*(names for _, names in filter(None, given)))
        if not given or any(item is not None and item[0] is None for item in given):
            return None, read
        results = evaluate(producer, [None if item is None else item[0] for item in given], opsets)
        return (None if results is None else results[list(producer.outputs).index(value)]), read

    def real(value: ir.Value, read: set[str]) -> NDArray[Any] | None:
        found, names = numbers(value)
        read |= names
        if found is None or not (found.dtype.kind == "f" or _is_real(value, front)):
            return None
        return found if found.dtype.kind == "f" else found.astype(np.float32)

    readers = {value for value, _, _ in _read(front)}
    as_they_are = {front.names[name].name for name in front.names if front.names[name] in readers}
    computed = ((value, name, of) for value, name, of in _read(front) if not is_literal(value))
    return collect(graph, computed, real, lambda name: name in as_they_are)


def _is_real(value: ir.Value, front: OnnxFrontEnd) -> bool:
    kind = front.kinds.get(value, value.dtype)
    return kind is not None and kind.is_floating_point()


def _read(front: OnnxFrontEnd) -> Iterator[tuple[ir.Value, str, Value]]:
    """Constant operands of operators whose results are not constant."""
    for node in front.ops:
        results = [front.env[value] for value in node.outputs if value in front.env]
        if results and all(value.constant for value in results):
            continue
        for value in node.inputs:
            known = None if value is None else front.env.get(value)
            if value is not None and known is not None and known.constant:
                yield value, value.name or "", known

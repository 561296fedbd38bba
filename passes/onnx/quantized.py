"""Quantized weights of ONNX files as real numbers, and the integer that stands for zero in them."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

#: (operator, input) of a quantized weight -> inputs with its scale and zero point, axis of channels.
_WEIGHTS: dict[tuple[str, int], tuple[int | None, int, int]] = {
    ("DequantizeLinear", 0): (1, 2, 1),
    ("QLinearConv", 3): (4, 5, 0),
    ("QLinearMatMul", 0): (1, 2, -2),
    ("QLinearMatMul", 3): (4, 5, -1),
    ("ConvInteger", 1): (None, 3, 0),
    ("MatMulInteger", 1): (None, 3, -1),
}

#: (operator, input) of scales and zero points. A removed channel's are not set to zero: nothing is divided by zero.
_SETTINGS = frozenset(
    {
        *((kind, at) for kind in ("QuantizeLinear", "DequantizeLinear") for at in (1, 2)),
        *(("QLinearConv", at) for at in (1, 2, 4, 5, 6, 7)),
        *(("QLinearMatMul", at) for at in (1, 2, 4, 5, 6, 7)),
        *((kind, at) for kind in ("ConvInteger", "MatMulInteger") for at in (2, 3)),
    }
)


def is_setting(value: ir.Value) -> bool:
    """Is a literal a scale or a zero point?"""
    return any((use.node.op_type, use.idx) in _SETTINGS for use in value.uses())


def stored(value: ir.Value) -> NDArray[Any]:
    """The numbers of a literal as they are stored, in the graph or in a Constant node."""
    producer = value.producer()
    if producer is not None:
        return producer.attributes["value"].as_tensor().numpy()
    assert value.const_value is not None
    return value.const_value.numpy()


def zero_of(value: ir.Value) -> NDArray[Any] | int:
    """What stands for zero in a literal; broadcasts to it."""
    return _setting(value, 1, 0)


def real(value: ir.Value) -> NDArray[Any]:
    """The numbers of a literal, dequantized if they are integers.

    A weight whose scale is computed comes without it: in units of its own.
    """
    numbers = stored(value)
    if numbers.dtype.kind == "f":
        return numbers
    if value.dtype is not None and value.dtype.is_floating_point():
        return numbers.astype(np.float32)
    return (numbers.astype(np.float32) - np.asarray(zero_of(value), np.float32)) * np.asarray(_setting(value, 0, 1))


def _setting(value: ir.Value, which: int, absent: int) -> NDArray[Any] | int:
    for use in value.uses():
        found = _WEIGHTS.get((use.node.op_type, use.idx))
        if found is None:
            continue
        at = found[which]
        item = use.node.inputs[at] if at is not None and at < len(use.node.inputs) else None
        if item is None or not (item.is_initializer() or _is_constant(item)):
            return absent
        numbers = stored(item)
        if numbers.size == 1:
            return numbers.reshape(())
        rank = stored(value).ndim
        axis = found[2]
        if "axis" in use.node.attributes:
            axis = use.node.attributes["axis"].as_int()
        if numbers.ndim != 1:
            return absent  # quantized in blocks, of which nothing is removed
        return numbers.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])
    return absent


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and "value" in producer.attributes

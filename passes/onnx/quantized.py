"""Quantized weights of ONNX files as real numbers, and the integer that stands for zero in them."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.channels.rules import ONNX
from graphprune.passes.onnx.sizes import operator_name


def is_setting(value: ir.Value) -> bool:
    """Is a literal a scale or a zero point? A removed channel's is not set to zero: nothing is divided by zero."""
    return any(_role(*use)[0].endswith(("scale", "zero_point")) for use in value.uses())


def _role(node: ir.Node, at: int) -> tuple[str, int | None, int | None]:
    """What the rule of a reader calls a value, and at which of its inputs the value's scale and zero point are."""
    kind = operator_name(node)
    if kind not in ONNX:
        return "", None, None
    binding = ONNX[kind][1]
    taken = binding.like.inputs if binding.like is not None else ()
    if isinstance(taken, slice) and at >= taken.start:  # tensors, each followed by its scale and zero point
        return ("input", "scale", "zero_point")[(at - taken.start) % taken.step], at + 1, at + 2
    name = binding.inputs[at] if at < len(binding.inputs) else ""
    prefix = "" if node.op_type == "DequantizeLinear" and name == "input" else f"{name}_"
    scale, point = (
        binding.inputs.index(own) if (own := f"{prefix}{what}") in binding.inputs else None
        for what in ("scale", "zero_point")
    )
    return name, scale, point


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
        name, *places = _role(*use)
        if places == [None, None]:
            continue
        at = places[which]
        item = use.node.inputs[at] if at is not None and at < len(use.node.inputs) else None
        if item is None or not (item.is_initializer() or _is_constant(item)):
            return absent
        numbers = stored(item)
        if numbers.size == 1:
            return numbers.reshape(())
        rank = stored(value).ndim
        if numbers.ndim != 1:
            return absent  # quantized in blocks, of which nothing is removed
        axis = _axis(use.node, name)
        return numbers.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])
    return absent


def _axis(node: ir.Node, name: str) -> int:
    """The dimension of an operand that has a scale for each of its channels."""
    if node.op_type == "DequantizeLinear":
        return node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return {"weight": 0, "other": -2 if transposed else -1}.get(name, -2)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and "value" in producer.attributes

"""Weights that a file holds as integers. Activations in integers have no gradient and are refused."""

from torch import Tensor

from graphprune.passes.importer.call import Call, Operator

__all__ = ["OPERATORS"]


def _dequantize(call: Call) -> Tensor:
    source = call.node.inputs[0]
    if source is None or source.const_value is None:
        raise call.refuse("the file is quantized: compress the float32 file it was made from, then quantize the result")
    x, scale = call.tensor(0), call.tensor(1)
    zero = call.optional(2)
    if call.attr("block_size", 0):
        raise call.refuse("scales of blocks")
    if scale.numel() > 1:
        axis = call.attr("axis", 1) % x.dim()
        form = [-1 if dim == axis else 1 for dim in range(x.dim())]
        scale, zero = scale.reshape(form), None if zero is None else zero.reshape(form)
    else:
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    x = x.to(scale.dtype)
    return (x if zero is None else x - zero.to(scale.dtype)) * scale


def _refuse(call: Call) -> Tensor:
    raise call.refuse("the file is quantized: compress the float32 file it was made from, then quantize the result")


OPERATORS: dict[str, Operator] = {
    "DequantizeLinear": _dequantize,
    **dict.fromkeys(
        (*("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"), "MatMulInteger"),
        _refuse,
    ),
}

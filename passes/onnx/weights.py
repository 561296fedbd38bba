"""Which stored tensors of an ONNX file are weights: neither sizes and indices, nor numbers that set an operator up."""

import onnx
import onnx_ir as ir

from graphprune.passes.onnx.layout import SELECTS

#: Types of numbers that are weights wherever an operator reads them.
_REAL = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)

#: Inputs of real numbers that set an operator up.
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
    "QLinearAdd": {1, 4, 6},
    "QLinearMul": {1, 4, 6},
    "QGemm": {1, 4, 7},
    "MatMulIntegerToFloat": {2, 3},
    "DynamicQuantizeMatMul": {2},
}

#: Inputs of weights that are stored as integers.
_QUANTIZED = {
    "DequantizeLinear": {0},
    "QLinearConv": {3, 8},
    "QLinearMatMul": {3},
    "ConvInteger": {1},
    "MatMulInteger": {1},
    "QGemm": {3, 6},
    "MatMulIntegerToFloat": {1},
    "DynamicQuantizeMatMul": {1},
}


def is_weight(kind: str, at: int, data_type: int, rank: int) -> bool:
    """Does an operator read a stored tensor as a weight?

    Args:
        kind: type of the operator.
        at: which of its inputs the tensor is.
        data_type: that of the tensor's numbers, as in `onnx.TensorProto`.
        rank: of the tensor; one number alone is a setting.
    """
    if at in _QUANTIZED.get(kind, ()):
        return True
    return data_type in _REAL and rank > 0 and at not in _SETTINGS.get(kind, ())


def is_read_as_weight(value: ir.Value) -> bool:
    """Does something that computes read a stored tensor as a weight? Data movement as a convolution does not."""
    producer = value.producer()
    tensor = value.const_value if producer is None else producer.attributes["value"].as_tensor()
    return tensor is not None and any(
        is_weight(node.op_type, at, int(tensor.dtype), len(tensor.shape))
        for node, at in value.uses()
        if SELECTS not in node.metadata_props
    )

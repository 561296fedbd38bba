"""Small clean-up passes over ONNX graphs."""

import numpy as np
import onnx_ir as ir

#: Weights below this are written as 0: denormal numbers make a convolution 20 times slower.
SMALLEST_WEIGHT = 1e-30

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})


class ZeroDenormalsPass(ir.passes.InPlacePass):
    """Set float weights of magnitude below 1e-30 to zero. Running it again changes nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; only tensors that hold such numbers are replaced."""
        modified = False
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in _FLOATS:
                continue
            array = tensor.numpy()
            tiny = (array != 0) & (np.abs(array) < SMALLEST_WEIGHT)
            if tiny.any():
                cleaned = array.copy()
                cleaned[tiny] = 0
                value.const_value = ir.Tensor(cleaned, dtype=tensor.dtype, name=value.name)
                modified = True
        return ir.passes.PassResult(model, modified)

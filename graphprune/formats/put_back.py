"""Numbers that were learned go back into the ONNX file that the network came from, which stays the user's own.

Names, inputs, outputs, opset, metadata and free sizes are as they were; weights that nothing touched keep every bit.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from graphprune.formats.onnx_files import write
from graphprune.passes.errors import VerificationError
from graphprune.passes.onnx.contract import literal, set_literal
from graphprune.passes.onnx.model import load_model

__all__ = ["put_back"]

logger = logging.getLogger("graphprune")


def put_back(source: Path, numbers: Mapping[str, Tensor], target: Path) -> int:
    """Write the file `source` with other numbers as `target`; return how many of its literals changed.

    Args:
        source: the file that the network was read from.
        numbers: by name of the literal; in the precision of the file they are rounded to, where it is float16.
        target: the file to write.

    Raises:
        VerificationError: the file has no literal of that name, or one of another shape: it is not the one.
        GraphPruneError: the file cannot be written.
    """
    model = load_model(source)
    named = {str(value.name): value for value in _literals(model)}
    changed = 0
    for name, tensor in numbers.items():
        held = literal(model, named.get(name))
        array = tensor.detach().cpu().numpy()
        if held is None or tuple(held.shape.numpy()) != array.shape:
            raise VerificationError(
                f"{source} has no literal {name} of the shape {array.shape}: it is another file by now"
            )
        old = held.numpy()
        fresh = array.astype(old.dtype)
        if not np.array_equal(old, fresh):
            set_literal(named[name], fresh)
            changed += 1
    write(model, target)
    return changed


def _literals(model: ir.Model) -> list[ir.Value]:
    inside = [node.outputs[0] for node in model.graph if node.op_type == "Constant" and "value" in node.attributes]
    return [*model.graph.initializers.values(), *inside]

"""Where sizes come from."""

import numpy as np
import torch

from graphprune.passes.importer.call import Call, Operator, Result

__all__ = ["OPERATORS"]


def _shape(call: Call) -> Result:
    value = call.inputs[0]
    shape = value.shape if value is not None else ()
    sizes = np.empty(len(shape), dtype=object)
    sizes[:] = list(shape)
    return sizes[slice(call.attr("start", 0), call.attr("end"))]


def _size(call: Call) -> Result:
    total = 1
    for size in call.tensor(0).shape:
        total = total * size
    out = np.empty((), dtype=object)
    out[()] = total
    return out


def _constant_of_shape(call: Call) -> Result:
    sizes = call.numbers(0)
    held = call.attr("value")
    fill = np.zeros(1, np.float32) if held is None else held.numpy().reshape(-1)
    number = fill[0].item()
    if all(isinstance(size, int) for size in sizes) and not np.issubdtype(fill.dtype, np.floating):
        return np.full(sizes, number, dtype=object if fill.dtype != np.bool_ else bool)
    return torch.full(sizes, number, dtype=torch.from_numpy(fill).dtype)


def _range(call: Call) -> Result:
    start, stop, step = (call.number(at) for at in range(3))
    if all(isinstance(number, int) for number in (start, stop, step)):
        return np.asarray(list(range(start, stop, step)), dtype=object)
    kind = torch.float32 if isinstance(start, float) else torch.int64
    return torch.arange(start, stop, step, dtype=kind)


def _eye_like(call: Call) -> Result:
    x = call.tensor(0)
    if call.attr("k", 0):
        raise call.refuse("a diagonal beside the main one")
    return torch.eye(x.shape[0], x.shape[1], dtype=x.dtype)


OPERATORS: dict[str, Operator] = {
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
}

"""Picking and writing by indices."""

import numpy as np
import torch
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result

__all__ = ["OPERATORS"]


def _gather(call: Call) -> Result:
    axis = call.attr("axis", 0)
    if isinstance(call.inputs[0], np.ndarray) and isinstance(call.inputs[1], np.ndarray):
        return np.asarray(np.take(call.static(0), call.static(1).astype(np.int64), axis), dtype=object)
    x = call.tensor(0)
    source = call.node.inputs[1]
    if isinstance(call.inputs[1], np.ndarray) or (source is not None and source.const_value is not None):
        index = call.static(1)
        if index.dtype == object and any(isinstance(item, torch.SymInt) for item in index.reshape(-1)):
            raise call.refuse("its indices depend on the batch")
        size = x.shape[axis]
        index = index.astype(np.int64)
        if index.ndim == 0:
            return x.select(axis, int(index))
        index = np.where(index < 0, index + int(size), index) if (index < 0).any() else index
        picked = x.index_select(axis, torch.from_numpy(index.reshape(-1)))
        axis = axis % x.dim()
        return picked if index.ndim == 1 else picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
    place = call.tensor(1)
    axis = axis % x.dim()
    if axis == 0 and x.dim() == 2:
        return torch.nn.functional.embedding(place, x)
    picked = x.index_select(axis, place.reshape(-1))
    return picked.reshape([*x.shape[:axis], *place.shape, *x.shape[axis + 1 :]])


def _gather_elements(call: Call) -> Tensor:
    return torch.gather(call.tensor(0), call.attr("axis", 0), call.tensor(1).long())


def _gather_nd(call: Call) -> Tensor:
    x, index, batch = call.tensor(0), call.tensor(1).long(), call.attr("batch_dims", 0)
    if batch:
        raise call.refuse("indices that differ by sample")
    return x[tuple(index[..., at] for at in range(index.shape[-1]))]


def _scatter_nd(call: Call) -> Tensor:
    x, index, updates = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    if call.attr("reduction", "none") not in ("none", "add"):
        raise call.refuse("the largest or a product of what meets")
    place = tuple(index[..., at] for at in range(index.shape[-1]))
    return x.index_put(place, updates, accumulate=call.attr("reduction", "none") == "add")


def _scatter_elements(call: Call) -> Tensor:
    if call.attr("reduction", "none") != "none":
        raise call.refuse("a reduction of what meets")
    return torch.scatter(call.tensor(0), call.attr("axis", 0), call.tensor(1).long(), call.tensor(2))


def _one_hot(call: Call) -> Tensor:
    depth, (low, high) = int(call.number(1)), call.numbers(2)
    found = torch.nn.functional.one_hot(call.tensor(0).long() % depth, depth)
    values = torch.where(found.bool(), float(high), float(low))
    return values.movedim(-1, call.attr("axis", -1))


def _grid_sample(call: Call) -> Tensor:
    mode = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    return torch.nn.functional.grid_sample(
        call.tensor(0),
        call.tensor(1),
        mode[call.attr("mode", "bilinear")],
        call.attr("padding_mode", "zeros"),
        bool(call.attr("align_corners", 0)),
    )


OPERATORS: dict[str, Operator] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "OneHot": _one_hot,
    "GridSample": _grid_sample,
}

"""Operators that pick part of a tensor or join tensors.

Channels that a slice skips leave the data there, which needs nothing: they may go if all else lets them.
Indices along a dimension that is cut are counted again among what stays.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.channels import movement
from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Recount, Rule
from graphprune.passes.channels.coupling import broadcast, concatenate, first_zero
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value

Range = tuple[int, int, int]


def _drop_all(analysis: Analysis, value: Value, dim: int) -> None:
    for facet in value.along(dim):
        analysis.drop(facet.labels)


def slice_ranges(analysis: Analysis, op: Op) -> list[Value]:
    """`x[start:stop:step]` along one or more dimensions."""
    x = op.value("input")
    ranges: dict[int, Range] = op.attrs["ranges"]
    for dim, (start, stop, step) in ranges.items():
        if (start, stop, step) == (0, x.shape[dim], 1):
            continue
        for facet in x.along(dim):
            if abs(step) == 1:
                analysis.drop(facet.labels)
            elif 0 <= start < step and stop > x.shape[dim] - step and x.shape[dim] % step == 0:
                blocks = np.moveaxis(facet.labels, dim, -1)
                blocks = blocks.reshape(*blocks.shape[:-1], -1, step)
                analysis.unite(blocks, blocks[..., :1])  # whole steps go, so that the same slice picks what stays
            else:
                analysis.freeze(facet, op, "a slice with a step over channels")
    return [x.moved(op.shape, movement.slices(ranges))]


def resize_slice(op: Op, cut: Cut) -> dict[str, Any]:
    """Starts and stops are counted among the channels that stay; backwards, what lies before the first is -1."""
    ranges: dict[int, Range] = dict(op.attrs["ranges"])
    changed = False
    for dim, (start, stop, step) in ranges.items():
        kept = cut.kept("input", dim)
        if kept is None or (start, stop, step) in ((0, len(kept), 1), (len(kept) - 1, -1, -1)) or abs(step) != 1:
            continue
        shift = int(step < 0)
        first, end = (int(kept[: at + shift].sum()) - shift for at in (start, stop))
        ranges[dim] = (first, end, step) if first >= 0 else (0, 0, step)
        changed = True
    return {"ranges": ranges} if changed else {}


def select(analysis: Analysis, op: Op) -> list[Value]:
    """One slice along `dim`."""
    x = op.value("input")
    dim, index = op.attrs["dim"] % x.rank, op.attrs["index"]
    index %= x.shape[dim]
    for facet in x.along(dim):
        analysis.drop(facet.labels)
        if facet.dims == (dim,):
            analysis.freeze(facet.labels.ravel()[index : index + 1], op, "is selected by itself")
        else:  # cut along the other dimensions, alike in every slice
            analysis.unite(facet.labels, facet.labels.take([0], axis=dim))
    return [x.moved(op.shape, movement.select(dim, index))]


def resize_select(op: Op, cut: Cut) -> dict[str, Any]:
    """The index is counted among the channels that stay."""
    x = op.value("input")
    dim, index = op.attrs["dim"] % x.rank, op.attrs["index"]
    kept = cut.kept("input", dim)
    return {} if kept is None else {"index": int(kept[: index % x.shape[dim]].sum())}


def split(analysis: Analysis, op: Op) -> list[Value]:
    """Parts of given sizes along `dim`."""
    x = op.value("input")
    dim = op.attrs["dim"] % x.rank
    _drop_all(analysis, x, dim)
    results, start = [], 0
    for shape in op.out_shapes:
        stop = start + shape[dim]
        results.append(x.moved(shape, movement.slices({dim: (start, stop, 1)})))
        start = stop
    return results


def even_split(analysis: Analysis, op: Op) -> list[Value]:
    """Parts that are counted, and whose sizes follow from that: only dimensions of variable size are split so.

    Where sizes are known, the front end has given them.
    """
    x = op.value("input")
    dim = op.attrs.get("dim", 0) % x.rank
    for facet in x.along(dim):
        analysis.freeze_value(x.with_facets((facet,)), op, "is split into equal parts")
    return split(analysis, replace(op, attrs={"dim": dim}))


def resize_split(op: Op, cut: Cut) -> dict[str, Any]:
    """Sizes of the parts among the channels that stay."""
    x = op.value("input")
    dim = op.attrs["dim"] % x.rank
    kept = cut.kept("input", dim)
    if kept is None:
        return {}
    stops = np.cumsum([shape[dim] for shape in op.out_shapes])[:-1]
    return {"split_sizes": [int(part.sum()) for part in np.split(kept, stops)]}


def unbind(analysis: Analysis, op: Op) -> list[Value]:
    """Every slice along `dim` as a tensor of its own."""
    x = op.value("input")
    dim = op.attrs.get("dim", 0) % x.rank
    for facet in x.along(dim):
        if facet.dims == (dim,):
            analysis.freeze(facet, op, "is taken apart into single slices")
        else:  # cut along the other dimensions, alike in every slice
            analysis.unite(facet.labels, facet.labels.take([0], axis=dim))
    return [x.moved(shape, movement.select(dim, index)) for index, shape in enumerate(op.out_shapes)]


def take(analysis: Analysis, op: Op) -> list[Value]:
    """Slices along `dim` picked by known indices; a single one is a `select`, unknown ones freeze what they touch."""
    x, index = op.value("input"), op.value("index")
    dim = op.attrs["dim"] % x.rank
    if index.data is None:
        for facet in x.along(dim):
            analysis.freeze_value(x.with_facets((facet,)), op, "is picked by computed indices")
        rest = tuple(f for f in x.facets if dim not in f.dims)
        analysis.freeze_value(index, op, "indices")
        if dim == 0:  # rows of a table
            analysis.outputs_along(x, -1)
        x = Value(x.shape, rest, x.constant)
        return [x.moved(op.shape, movement.take(dim, np.zeros(index.shape, dtype=np.int64)))]
    indices = index.data.astype(np.int64) % x.shape[dim]
    if indices.ndim == 0:
        return select(analysis, replace(op, attrs={"dim": dim, "index": int(indices)}))
    if indices.ndim > 1:
        x = _without_tables(analysis, op, x, dim, indices)
    _drop_all(analysis, x, dim)
    return [x.moved(op.shape, movement.take(dim, indices))]


def _without_tables(analysis: Analysis, op: Op, x: Value, dim: int, indices: NDArray[np.int64]) -> Value:
    """`x` without the channels along `dim` that indices of several dimensions would lay out along more than one.

    Along one they may: a tensor that was laid out flat is read back as the map that it was.
    """
    free = []
    for facet in x.facets:
        laid = movement.take(dim, indices)(facet.labels) if dim in facet.dims else None
        along = [] if laid is None else [d for d in analysis.space.varies(laid) if dim <= d < dim + indices.ndim]
        if len(along) > 1 or (along and x.constant):
            analysis.freeze_value(x.with_facets((facet,)), op, "is picked by indices of several dimensions")
        else:
            free.append(facet)
    return replace(x, facets=tuple(free))


def resize_take(op: Op, cut: Cut) -> dict[str, Any]:
    """Indices are counted among the channels that stay; those of removed channels disappear."""
    x, index = op.value("input"), op.value("index")
    dim = op.attrs["dim"] % x.rank
    kept = cut.kept("input", dim)
    if kept is None or index.data is None:
        return {}
    return {"index": recounted(index.data, kept, cut.outputs[0], dim)}


def recounted(indices: NDArray[Any], kept: Mask, result: Mapping[int, Mask], dim: int) -> Recount:
    """Indices that pick from `dim`; `result`: which positions of what they gave stay, by dimension."""
    picked = {d - dim: mask for d, mask in result.items() if dim <= d < dim + indices.ndim}
    return Recount(indices.astype(np.int64) % len(kept), kept, picked)


def gated_halves(analysis: Analysis, op: Op) -> list[Value]:
    """torch.nn.functional.glu: the first half along `dim` times the sigmoid of the second."""
    x = op.value("input")
    dim, half = op.attrs["dim"] % x.rank, op.shape[op.attrs["dim"]]
    _drop_all(analysis, x, dim)
    parts = [x.moved(op.shape, movement.slices({dim: (start, start + half, 1)})) for start in (0, half)]
    return [broadcast(analysis, op, parts, first_zero)]


def join(analysis: Analysis, op: Op) -> list[Value]:
    """Concatenation."""
    return [concatenate(analysis, op, op.values(), op.attrs["dim"])]


def stack(analysis: Analysis, op: Op) -> list[Value]:
    """Concatenation along a new dimension."""
    dim = op.attrs["dim"] % len(op.shape)
    lifted = []
    for value in op.values():
        shape = (*value.shape[:dim], 1, *value.shape[dim:])
        lifted.append(value.moved(shape, lambda array: np.expand_dims(array, dim)))
    return [concatenate(analysis, op, lifted, dim)]


def _clamped(start: int | None, stop: int | None, step: int, size: int) -> Range:
    start, stop, step = slice(start, stop, step).indices(size)
    return start, max(stop, start) if step > 0 else stop, step


def _read_slice(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    x = inputs["input"]
    dim = attrs.get("dim", 0) % x.rank
    return {"ranges": {dim: _clamped(attrs.get("start"), attrs.get("end"), attrs.get("step", 1), x.shape[dim])}}


def _read_narrow(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    x, start = inputs["input"], attrs["start"]
    dim = attrs["dim"] % x.rank
    start += x.shape[dim] if start < 0 else 0
    return {"ranges": {dim: (start, start + attrs["length"], 1)}}


def _write_narrow(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    ((start, stop, _),) = attrs["ranges"].values()
    return {"start": start, "length": stop - start}


def _write_slice(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if "ranges" not in attrs:
        return {}
    ((start, stop, _),) = attrs["ranges"].values()
    return {"start": start, "end": stop}


def _read_onnx_slice(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    x = inputs["input"]

    def numbers(name: str, default: Any) -> Any:
        value = inputs.get(name)
        return attrs.get(name, default) if value is None else value.data.tolist()

    starts, ends = numbers("starts", None), numbers("ends", None)
    axes = numbers("axes", list(range(len(starts))))
    steps = numbers("steps", [1] * len(starts))
    return {
        "ranges": {
            a % x.rank: _clamped(s, e, t, x.shape[a % x.rank])
            for s, e, a, t in zip(starts, ends, axes, steps, strict=True)
        }
    }


def _write_onnx_slice(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if "ranges" not in attrs:
        return {}
    ranges = attrs["ranges"].values()
    # a stop of -1 would count from the end: "beyond the first" is written as a very negative number
    stops = [stop if step > 0 or stop >= 0 else -(2**31) for _, stop, step in ranges]
    return {"starts": [start for start, _, _ in ranges], "ends": stops}


def _write_split(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    return {"split": attrs["split_sizes"]} if "split_sizes" in attrs else {}


def _axis(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"dim": attrs.get("axis", 0)}


RULES = (
    Rule(
        "slice",
        slice_ranges,
        resize_slice,
        aten={
            "slice": Binding(read=_read_slice, write=_write_slice),
            "narrow": Binding(read=_read_narrow, write=_write_narrow),
        },
        onnx={
            "Slice": Binding(
                inputs=("input", "starts", "ends", "axes", "steps"),
                needs=("starts", "ends", "axes", "steps"),
                read=_read_onnx_slice,
                write=_write_onnx_slice,
            )
        },
        moves=True,
    ),
    Rule("select", select, resize_select, aten={"select": Binding()}, moves=True),
    Rule(
        "split",
        split,
        resize_split,
        aten={"split_with_sizes": Binding(), "unsafe_split_with_sizes": Binding()},
        onnx={"Split": Binding(inputs=("input", "split"), read=_axis, write=_write_split)},
        moves=True,
    ),
    Rule(
        "even split",
        even_split,
        aten={
            name: Binding() for name in ("chunk", "split.Tensor", "tensor_split", "unsafe_chunk", "unsafe_split.Tensor")
        },
        moves=True,
    ),
    Rule("gated halves", gated_halves, aten={"glu": Binding()}),
    Rule("unbind", unbind, aten={"unbind": Binding()}, moves=True),
    Rule(
        "take",
        take,
        resize_take,
        aten={"index_select": Binding()},
        onnx={"Gather": Binding(inputs=("input", "index"), read=_axis)},
        moves=True,
    ),
    Rule(
        "concatenation",
        join,
        aten={"cat": Binding(fixed={"dim": 0}), "concat": Binding(fixed={"dim": 0})},
        onnx={"Concat": Binding(inputs=("tensors...",), read=_axis)},
        moves=True,
    ),
    Rule("stack", stack, aten={"stack": Binding(fixed={"dim": 0})}, moves=True),
)

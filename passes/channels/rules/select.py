"""Operators that pick part of a tensor, join tensors, or pad them.

Channels that a slice skips leave the data there, which needs nothing: they may go if all else lets them.
Indices along a dimension that is cut are counted again among what stays.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from graphprune.passes.channels import movement
from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import broadcast, concatenate, first_zero
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Facet, Value

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
        x = Value(x.shape, rest, x.constant)
        return [x.moved(op.shape, movement.take(dim, np.zeros(index.shape, dtype=np.int64)))]
    indices = index.data.astype(np.int64) % x.shape[dim]
    if indices.ndim == 0:
        return select(analysis, replace(op, attrs={"dim": dim, "index": int(indices)}))
    if indices.ndim > 1:
        for facet in x.along(dim):
            analysis.freeze_value(x.with_facets((facet,)), op, "is picked by indices of several dimensions")
    _drop_all(analysis, x, dim)
    return [x.moved(op.shape, movement.take(dim, indices))]


def resize_take(op: Op, cut: Cut) -> dict[str, Any]:
    """Indices are counted among the channels that stay; those of removed channels disappear."""
    x, index = op.value("input"), op.value("index")
    kept = cut.kept("input", op.attrs["dim"] % x.rank)
    if kept is None or index.data is None:
        return {}
    indices = index.data.astype(np.int64) % len(kept)
    position = np.cumsum(kept) - 1
    return {"index": position[indices] if indices.ndim == 0 else position[indices[kept[indices]]]}


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


def pad(analysis: Analysis, op: Op) -> list[Value]:
    """Constant padding. Along channels, the padding is channels of its own; elsewhere it changes nothing.

    A padded channel is zero where the padding value is, so it may be cut with what it is added to.
    """
    x = op.value("input")
    pads: list[tuple[int, int]] = op.attrs["pads"]
    constant = op.attrs.get("mode", "constant") == "constant"
    zero = op.attrs.get("value") in (None, 0, 0.0)
    facets = []
    for facet in x.facets:
        padded = [dim for dim in facet.dims if pads[dim] != (0, 0)]
        if not padded:
            keeps = zero or not constant or all(p == (0, 0) for p in pads)
            facets.append(facet if keeps else facet.with_zero(False))
        elif not constant:
            analysis.freeze_value(x.with_facets((facet,)), op, "is padded with its neighbors")
        else:
            facets.append(_padded(analysis, facet, padded, pads, zero))
    return [Value(op.shape, tuple(facets), constant=x.constant)]


def _padded(analysis: Analysis, facet: Facet, dims: list[int], pads: list[tuple[int, int]], zero: bool) -> Facet:
    analysis.drop(facet.labels)  # negative padding crops
    crop: list[Any] = [slice(None)] * facet.labels.ndim
    grow = [(0, 0)] * facet.labels.ndim
    for dim in dims:
        before, after = pads[dim]
        crop[dim] = slice(max(-before, 0), facet.labels.shape[dim] - max(-after, 0))
        grow[dim] = (max(before, 0), max(after, 0))
    labels = np.pad(facet.labels[tuple(crop)], grow, constant_values=-1)
    zeros: Mask = np.pad(facet.zero[tuple(crop)], grow, constant_values=zero)
    new = labels < 0
    labels[new] = analysis.space.fresh(int(new.sum()))
    return Facet(labels, zeros)


def resize_pad(op: Op, cut: Cut) -> dict[str, Any]:
    """Of a padded channel dimension, count what stays of the padding (or of what is cropped)."""
    pads = list(op.attrs["pads"])
    changed = False
    for dim, (before, after) in enumerate(pads):
        out, source = cut.outputs[0].get(dim), cut.kept("input", dim)
        size = op.value("input").shape[dim]
        if (out is None and source is None) or (before, after) == (0, 0):
            continue
        out = np.ones(op.shape[dim], dtype=np.bool_) if out is None else out
        source = np.ones(size, dtype=np.bool_) if source is None else source
        head = int(out[:before].sum()) if before > 0 else -int(source[:-before].sum()) if before < 0 else 0
        tail = int(out[len(out) - after :].sum()) if after > 0 else -int(source[size + after :].sum()) if after else 0
        changed = changed or (head, tail) != (before, after)
        pads[dim] = (head, tail)
    return {"pads": pads} if changed else {}


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


def _write_onnx_pad(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if "pads" not in attrs:
        return {}
    pads, axes = attrs["pads"], old.get("axes")
    dims = range(len(pads)) if axes is None else [int(a) % len(pads) for a in axes.data]
    return {"pads": [pads[d][0] for d in dims] + [pads[d][1] for d in dims]}


def _write_split(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    return {"split": attrs["split_sizes"]} if "split_sizes" in attrs else {}


def _read_pad(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    rank, flat = inputs["input"].rank, attrs["pad"]
    pads = [(0, 0)] * rank
    for i in range(len(flat) // 2):
        pads[rank - 1 - i] = (flat[2 * i], flat[2 * i + 1])
    return {"pads": pads, "mode": attrs.get("mode", "constant"), "value": attrs.get("value")}


def _write_pad(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if "pads" not in attrs:
        return {}
    pairs = attrs["pads"][::-1]
    count = max(
        len(old["pad"]) // 2,
        1 + max(i for i, pair in enumerate(pairs) if pair != (0, 0)) if any(pair != (0, 0) for pair in pairs) else 0,
    )
    return {"pad": [size for pair in pairs[:count] for size in pair]}


def _read_onnx_pad(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    rank = inputs["input"].rank
    given, axes, fill = inputs.get("pads"), inputs.get("axes"), inputs.get("constant_value")
    flat = attrs["pads"] if given is None else given.data.tolist()
    dims = list(range(rank)) if axes is None else [int(a) % rank for a in axes.data]
    pads = [(0, 0)] * rank
    for i, dim in enumerate(dims):
        pads[dim] = (flat[i], flat[i + len(dims)])
    mode = attrs.get("mode", "constant")
    value = attrs.get("value", 0.0) if fill is None else (float(fill.data) if fill.data is not None else None)
    if fill is not None and fill.data is None:
        value = float("nan")
    return {"pads": pads, "mode": mode.decode() if isinstance(mode, bytes) else mode, "value": value}


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
        aten={"split_with_sizes": Binding()},
        onnx={"Split": Binding(inputs=("input", "split"), read=_axis, write=_write_split)},
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
    Rule(
        "padding",
        pad,
        resize_pad,
        aten={
            "pad": Binding(read=_read_pad, write=_write_pad),
            "constant_pad_nd": Binding(read=_read_pad, write=_write_pad),
        },
        onnx={
            "Pad": Binding(
                inputs=("input", "pads", "constant_value", "axes"),
                needs=("pads", "axes"),
                read=_read_onnx_pad,
                write=_write_onnx_pad,
            )
        },
    ),
)

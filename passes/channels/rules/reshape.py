"""Operators that lay the same elements out in another shape, or repeat them.

Labels are moved as the data is. What has to follow a cut are the sizes that the operator's arguments
repeat: those of dimensions that got shorter are replaced, all others stay as written (-1, 0, symbolic).
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from graphprune.passes.channels import movement
from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import broadcast, first_zero
from graphprune.passes.channels.labels import keep_dims
from graphprune.passes.channels.value import Value


def reshape(analysis: Analysis, op: Op) -> list[Value]:
    """Row-major reshape of any kind: view, flatten, squeeze, unsqueeze."""
    x = op.value("input")
    if prod(x.shape) != prod(op.shape) or 0 in op.shape:
        analysis.freeze_value(x, op, "its elements are read in another size")
        return [Value(op.shape, constant=x.constant)]
    return [x.moved(op.shape, movement.reshape(x.shape, op.shape))]


def reshape_as(analysis: Analysis, op: Op) -> list[Value]:
    """The shape of another tensor, whose channels are those of the result."""
    x, other = op.value("input"), op.value("other")
    if prod(x.shape) != prod(op.shape) or 0 in op.shape:
        analysis.freeze_value(x, op, "its elements are read in another size")
        return [Value(op.shape, constant=x.constant)]
    moved = x.moved(op.shape, movement.reshape(x.shape, op.shape))
    return [replace(broadcast(analysis, op, [moved, other], first_zero), constant=x.constant)]


def expand(analysis: Analysis, op: Op) -> list[Value]:
    """Repeat dimensions of size 1."""
    x = op.value("input")
    return [_repeated(analysis, x, x.moved(op.shape, movement.expand(x.shape, op.shape)))]


def _repeated(analysis: Analysis, x: Value, result: Value) -> Value:
    """What came out of repeating `x`, with labels along the dimensions that had size 1, along which nothing differs.

    Where what is repeated is constant (a filter for all channels), they can be cut, and the repeats follow.
    """
    if not x.constant or (x.data is not None and x.data.dtype.kind in "iu"):  # indices
        return result
    rank, zero = result.rank, x.data is not None and not np.any(x.data)
    facets = list(result.facets)
    for dim, (before, after) in enumerate(zip((1,) * (rank - x.rank) + x.shape, result.shape, strict=True)):
        if before == 1 < after:
            facets.append(Axis(analysis.space.fresh(after), np.full(after, zero)).facet(rank, dim))
    return result.with_facets(tuple(facets))


def permute(analysis: Analysis, op: Op) -> list[Value]:
    """Reorder dimensions."""
    x = op.value("input")
    dims = [d % x.rank for d in op.attrs["dims"]]
    return [x.moved(op.shape, movement.permute(dims))]


def repeat(analysis: Analysis, op: Op) -> list[Value]:
    """Repeat the whole tensor along each dimension (missing leading repeats are 1)."""
    x = op.value("input")
    repeats = [1] * (x.rank - len(op.attrs["repeats"])) + list(op.attrs["repeats"])
    return [_repeated(analysis, x, x.moved(op.shape, movement.tile(x.shape, repeats)))]


def repeat_each(analysis: Analysis, op: Op) -> list[Value]:
    """Repeat every slice along one dimension; without a dimension, of the tensor laid out flat."""
    x, dim = op.value("input"), op.attrs["dim"]
    if dim is None:
        flat = (prod(x.shape),)
        x, dim = x.moved(flat, movement.reshape(x.shape, flat)), 0
    return [x.moved(op.shape, movement.repeat_each(dim % x.rank, op.attrs["repeats"]))]


def pixel_shuffle(analysis: Analysis, op: Op) -> list[Value]:
    """(N, c*r*r, H, W) -> (N, c, H*r, W*r): the r*r channels of an output channel go together."""
    x, r = op.value("input"), op.attrs["upscale_factor"]
    *lead, channels, height, width = x.shape
    depth_first = op.attrs.get("depth_first", False)  # ONNX DepthToSpace in DCR mode
    inner = (r, r, channels // (r * r)) if depth_first else (channels // (r * r), r, r)
    view = (*lead, *inner, height, width)
    n = len(lead)
    order = (n + 2, n + 3, n, n + 4, n + 1) if depth_first else (n, n + 3, n + 1, n + 4, n + 2)
    steps = _without_blocks(analysis, op, n + 1).moved(view, movement.reshape(x.shape, view))
    dims = (*range(n), *order)
    moved = steps.moved(tuple(view[d] for d in dims), movement.permute(dims))
    for facet in moved.facets:  # the pixels of an output channel are r*r input channels
        analysis.unite(facet.labels, keep_dims(facet.labels, (*range(n + 1), n + 1, n + 3)))
    return [moved.moved(op.shape, movement.reshape(moved.shape, op.shape))]


def pixel_unshuffle(analysis: Analysis, op: Op) -> list[Value]:
    """(N, c, H*r, W*r) -> (N, c*r*r, H, W)."""
    x, r = op.value("input"), op.attrs["downscale_factor"]
    *lead, channels, height, width = x.shape
    view = (*lead, channels, height // r, r, width // r, r)
    n = len(lead)
    depth_first = op.attrs.get("depth_first", False)
    order = (n + 2, n + 4, n, n + 1, n + 3) if depth_first else (n, n + 2, n + 4, n + 1, n + 3)
    dims = (*range(n), *order)
    moved = _without_blocks(analysis, op, n + 1).moved(view, movement.reshape(x.shape, view))
    moved = moved.moved(tuple(view[d] for d in dims), movement.permute(dims))
    return [moved.moved(op.shape, movement.reshape(moved.shape, op.shape))]


def _without_blocks(analysis: Analysis, op: Op, first: int) -> Value:
    """The input without channels along its positions, which are read in blocks of a fixed size."""
    x = op.value("input")
    for facet in x.facets:
        if any(dim >= first for dim in facet.dims):
            analysis.freeze(facet, op, "is read in blocks")
    return Value(x.shape, tuple(f for f in x.facets if all(dim < first for dim in f.dims)), x.constant)


def channel_shuffle(analysis: Analysis, op: Op) -> list[Value]:
    """(N, g*c, ...) read as (g, c) and written as (c, g): both layouts must be cut in whole slices."""
    x, groups = op.value("input"), op.attrs["groups"]
    view = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    steps = x.moved(view, movement.reshape(x.shape, view))
    rows = [analysis.rectangular(f) for f in steps.facets]
    for facet in rows:  # `groups` stays, so the same position of every group must go
        if facet.labels.shape[1] > 1:
            analysis.unite(facet.labels, facet.labels[:, :1])
    dims = (0, 2, 1, *range(3, len(view)))
    moved = steps.moved(tuple(view[d] for d in dims), movement.permute(dims))
    return [moved.moved(op.shape, movement.reshape(moved.shape, op.shape))]


def resize_shape(op: Op, cut: Cut) -> dict[str, Any]:
    """Sizes of the dimensions that got shorter."""
    changed = cut.outputs[0]
    if not changed:
        return {}
    sizes: list[int | None] = [None] * len(op.shape)
    for dim, kept in changed.items():
        sizes[dim] = int(kept.sum())
    return {"shape": sizes}


def resize_repeats(op: Op, cut: Cut) -> dict[str, Any]:
    """Repeats of the dimensions that had size 1 and got shorter."""
    x, rank = op.value("input"), len(op.shape)
    before = (1,) * (rank - x.rank) + x.shape
    changed = {dim: int(kept.sum()) for dim, kept in cut.outputs[0].items() if before[dim] == 1}
    given = len(op.attrs["repeats"])
    return {"repeats": [changed.get(dim) for dim in range(rank - given, rank)]} if changed else {}


def resize_unflatten(op: Op, cut: Cut) -> dict[str, Any]:
    """Sizes of the dimensions that one dimension is split into."""
    dim = op.attrs["dim"] % op.value("input").rank
    count = len(op.attrs["sizes"])
    sizes = [int(cut.outputs[0][d].sum()) if d in cut.outputs[0] else None for d in range(dim, dim + count)]
    return {"sizes": sizes} if any(size is not None for size in sizes) else {}


def _transposed(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    rank = inputs["input"].rank
    dims = list(range(rank))
    attrs = {"dim0": attrs["axis0"], "dim1": attrs["axis1"]} if "axis0" in attrs else attrs
    a, b = (attrs["dim0"] % rank, attrs["dim1"] % rank) if "dim0" in attrs else (rank - 2, rank - 1)
    if rank > 1:
        dims[a], dims[b] = dims[b], dims[a]
    return {"dims": dims}


def _moved_dims(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    rank = inputs["input"].rank
    source, destination = (
        [d % rank for d in (given if isinstance(given, list) else [given])]
        for given in (attrs["source"], attrs["destination"])
    )
    dims = [d for d in range(rank) if d not in source]
    for target, origin in sorted(zip(destination, source, strict=True)):
        dims.insert(target, origin)
    return {"dims": dims}


def _onnx_perm(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"dims": attrs.get("perm") or list(range(inputs["input"].rank))[::-1]}


def _tile(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"repeats": inputs["repeats"].data.tolist()}


def _shuffle(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    size = attrs["blocksize"]
    mode = attrs.get("mode", b"DCR")
    return {
        "upscale_factor": size,
        "downscale_factor": size,
        "depth_first": (mode.decode() if isinstance(mode, bytes) else mode) == "DCR",
    }


def _unshuffle(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"downscale_factor": attrs["blocksize"], "depth_first": True}


_SHAPE = Binding(names={"shape": "size"})
_X = Binding(inputs=("input",))

RULES = (
    Rule(
        "reshape",
        reshape,
        resize_shape,
        aten={"view": _SHAPE, "_unsafe_view": _SHAPE, "reshape": Binding()},
        onnx={"Reshape": Binding(inputs=("input", "shape"))},
        moves=True,
    ),
    Rule(
        "flatten or squeeze",
        reshape,
        aten={name: Binding() for name in ("flatten", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze")},
        onnx={
            "Flatten": _X,
            "Squeeze": Binding(inputs=("input", "axes")),
            "Unsqueeze": Binding(inputs=("input", "axes")),
        },
        moves=True,
    ),
    Rule(
        "reshape to the shape of another",
        reshape_as,
        aten={"reshape_as": Binding(), "view_as": Binding()},
        measures=("other",),
    ),
    Rule("unflatten", reshape, resize_unflatten, aten={"unflatten": Binding()}, moves=True),
    Rule(
        "expand",
        expand,
        resize_shape,
        aten={"expand": _SHAPE},
        onnx={"Expand": Binding(inputs=("input", "shape"))},
        moves=True,
    ),
    Rule(
        "permute",
        permute,
        aten={
            "permute": Binding(),
            "transpose": Binding(read=_transposed),
            "t": Binding(read=_transposed),
            "swapaxes": Binding(read=_transposed),
            "swapdims": Binding(read=_transposed),
            "mT": Binding(read=_transposed),
            "movedim": Binding(read=_moved_dims),
            "moveaxis": Binding(read=_moved_dims),
            "numpy_T": Binding(read=lambda attrs, inputs: {"dims": list(range(inputs["input"].rank))[::-1]}),
        },
        onnx={"Transpose": Binding(inputs=("input",), read=_onnx_perm)},
        moves=True,
    ),
    Rule(
        "repeat",
        repeat,
        resize_repeats,
        aten={"repeat": Binding(), "tile": Binding(names={"repeats": "dims"})},
        onnx={"Tile": Binding(inputs=("input", "repeats"), needs=("repeats",), read=_tile)},
        moves=True,
    ),
    Rule("repeat each", repeat_each, aten={"repeat_interleave.self_int": Binding()}, moves=True),
    Rule(
        "pixel shuffle",
        pixel_shuffle,
        aten={"pixel_shuffle": Binding()},
        onnx={"DepthToSpace": Binding(inputs=("input",), read=_shuffle)},
        moves=True,
    ),
    Rule(
        "pixel unshuffle",
        pixel_unshuffle,
        aten={"pixel_unshuffle": Binding()},
        onnx={"SpaceToDepth": Binding(inputs=("input",), read=_unshuffle)},
        moves=True,
    ),
    Rule(
        "channel shuffle",
        channel_shuffle,
        aten={"channel_shuffle": Binding(), "native_channel_shuffle": Binding()},
        moves=True,
    ),
)

"""Operators that pick or move single positions: indexing, rolls, flips, windows, sampling, sums along a line.

They move data along some dimensions. Channels along the other dimensions pass; channels along a dimension
that is shifted, windowed or picked by computed indices are frozen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from graphprune.passes.channels import movement
from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import all_zero, broadcast, never_zero
from graphprune.passes.channels.rules.select import recounted
from graphprune.passes.channels.value import Facet, Move, Value


def freeze_along(analysis: Analysis, op: Op, value: Value, dims: Sequence[int], reason: str) -> tuple[Facet, ...]:
    """Freeze the facets that differ along one of `dims`; the facets that do not."""
    free = []
    for facet in value.facets:
        if any(dim in facet.dims for dim in dims):
            analysis.freeze_value(value.with_facets((facet,)), op, reason)
        else:
            free.append(facet)
    return tuple(free)


def along_dims(analysis: Analysis, op: Op) -> list[Value]:
    """Same sizes out as in; positions are mixed along `dims` alone."""
    x = op.value("input")
    dims = [dim % max(x.rank, 1) for dim in op.attrs["dims"]]
    facets = freeze_along(analysis, op, x, dims, "mixes positions")
    if not op.attrs.get("keeps_zero", False):
        facets = tuple(facet.with_zero(False) for facet in facets)
    return [Value(shape, facets if len(shape) == x.rank else (), x.constant) for shape in op.out_shapes]


def flip(analysis: Analysis, op: Op) -> list[Value]:
    """Reverse along dimensions: labels are reversed with the data."""
    x = op.value("input")
    return [x.moved(op.shape, movement.flip([dim % x.rank for dim in op.attrs["dims"]]))]


def index(analysis: Analysis, op: Op) -> list[Value]:
    """`x[i, :, j, ...]` with integer tensors.

    1. One known index of rank 1: slices are picked, as in `take`.
    2. Anything else: the indexed dimensions are frozen; the others pass to where they stand in the result.
    """
    x = op.value("input")
    indices = op.inputs["indices"]
    indexed = [dim for dim, item in enumerate(indices) if item is not None]
    known = indices[indexed[0]] if len(indexed) == 1 else None
    if isinstance(known, Value) and known.data is not None and known.data.dtype != np.bool_ and known.rank == 1:
        for facet in x.along(indexed[0]):
            analysis.drop(facet.labels)
        return [x.moved(op.shape, movement.take(indexed[0], known.data.astype(np.int64) % x.shape[indexed[0]]))]
    for item in indices:
        if isinstance(item, Value):
            analysis.freeze_value(item, op, "is used as an index")
    if indexed == [0]:  # rows of a table
        analysis.outputs_along(x, -1)
    free = freeze_along(analysis, op, x, indexed, "is picked by an index of several dimensions")
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    picked = len(op.shape) - (x.rank - len(indexed))  # rank that the indices have together
    start = indexed[0] if adjacent else 0
    passing = [dim for dim in range(x.rank) if dim not in indexed]

    def move(array: Any) -> Any:
        array = np.moveaxis(array, passing, range(len(passing)))
        array = array.reshape(array.shape[: len(passing)])
        return np.expand_dims(array, tuple(range(start, start + picked)))

    return [Value(op.shape, tuple(f.map(move) for f in free), x.constant)]


def resize_index(op: Op, cut: Cut) -> dict[str, Any]:
    """Indices are counted among the channels that stay (case 1)."""
    indices = op.inputs["indices"]
    indexed = [dim for dim, item in enumerate(indices) if item is not None]
    kept = cut.kept("input", indexed[0]) if len(indexed) == 1 else None
    if kept is None:
        return {}
    found = recounted(indices[indexed[0]].data, kept, cut.outputs[0], indexed[0])
    return {"indices": [found if item is not None else None for item in indices]}


def window(analysis: Analysis, op: Op) -> list[Value]:
    """Sliding windows along spatial dimensions; the result's other dimensions are those of the input."""
    x = op.value("input")
    dim = op.attrs["dimension"] % x.rank
    free = freeze_along(analysis, op, x, [dim], "is read in windows")
    return [Value(op.shape, tuple(f.map(lambda array: array[..., None]) for f in free), x.constant)]


def picked_along(analysis: Analysis, op: Op) -> list[Value]:
    """`gather`, `scatter`, `index_add` and the like: positions are picked along one dimension, whichever they are.

    Along the other dimensions the operands meet position by position, if they are of one size there.
    """
    dim = op.attrs["dims"][0] % max(len(op.shape), 1)
    values = op.values()
    meeting: list[Value] = []
    for value in values:
        if value.rank != len(op.shape):  # a list of positions along `dim`
            analysis.freeze_value(value, op, "is used as an index")
            continue
        apart = [d for d in range(value.rank) if d == dim or any(v.shape[d] != op.shape[d] for v in _alike(op, values))]
        free = freeze_along(analysis, op, value, apart, "every position is picked by itself")
        shape = tuple(1 if d in apart else size for d, size in enumerate(value.shape))
        meeting.append(Value(shape, free, value.constant))
    whole = Op(op.kind, op.name, op.where, op.inputs, op.attrs, (np.broadcast_shapes(*(v.shape for v in meeting)),))
    sources = [n for n, v in enumerate(v for v in values if v.rank == len(op.shape)) if not _is_index(op, v)]

    def zero(zeros: Sequence[Any]) -> Any:
        return all_zero([zeros[n] for n in sources]) if sources else False

    result = broadcast(analysis, whole, meeting, zero)
    return [Value(shape, result.facets) for shape in op.out_shapes]


def gather_slices(analysis: Analysis, op: Op) -> list[Value]:
    """`x[b, i, j, ...]` with a list of positions (i, j) in the last dimension of the indices; b are `batch_dims`.

    Channels along the dimensions that are not picked from pass to the end of the result; the others are frozen.
    """
    x, index = op.value("input"), op.value("index")
    first = op.attrs.get("batch_dims", 0) + index.shape[-1]
    analysis.freeze_value(index, op, "is used as an index")
    free = freeze_along(analysis, op, x, range(first), "every position is picked by itself")
    return [Value(op.shape, tuple(f.map(_behind(first, index.rank - 1)) for f in free), x.constant)]


def scatter_slices(analysis: Analysis, op: Op) -> list[Value]:
    """A copy of `x` in which `x[i, j, ...]` is replaced by, or joined with, slices of a source."""
    x, index, source = op.value("input"), op.value("index"), op.value("source")
    picked, lead = index.shape[-1], index.rank - 1
    analysis.freeze_value(index, op, "is used as an index")
    given = []
    for value, first in ((x, picked), (source, lead)):
        free = freeze_along(analysis, op, value, range(first), "every position is picked by itself")
        shape = (*(1,) * picked, *value.shape[first:])
        given.append(Value(shape, tuple(f.map(_behind(first, picked)) for f in free), value.constant))
    zero = all_zero if op.attrs.get("reduction", b"none") in _KEEPS_ZERO else never_zero
    met = broadcast(analysis, replace(op, out_shapes=(given[0].shape,)), given, zero)
    return [Value(op.shape, met.facets)]


#: How ScatterND joins what was there with what is put there, such that zeros stay zero.
_KEEPS_ZERO = (b"none", "none", b"add", "add", b"max", "max", b"min", "min")


def _behind(first: int, lead: int) -> Move:
    """Dimensions from `first` on, behind `lead` others, of an array that is of size 1 along those before `first`."""
    return lambda array: array.reshape((*(1,) * lead, *array.shape[first:]))


def _alike(op: Op, values: Sequence[Value]) -> list[Value]:
    return [value for value in values if value.rank == len(op.shape)]


def _is_index(op: Op, value: Value) -> bool:
    return any(op.inputs.get(name) is value for name in ("index", "indices"))


def differences(analysis: Analysis, op: Op) -> list[Value]:
    """`diff`: neighbours are subtracted along one dimension; what is put before or after them is frozen with it."""
    for name in ("prepend", "append"):
        if op.optional(name) is not None:
            for value in op.values():
                analysis.freeze_value(value, op, f"has values to {name}")
            return [Value(op.shape)]
    return along_dims(analysis, op)


def columns(analysis: Analysis, op: Op) -> list[Value]:
    """`im2col`: (N, C, H, W) -> (N, C*k, L); every channel becomes k rows, one for each position of the kernel."""
    x = op.value("input")
    free = freeze_along(analysis, op, x, [x.rank - 2, x.rank - 1], "is read in windows")
    k = prod(op.attrs["kernel_size"])

    def move(array: Any) -> Any:
        rows = array.repeat(k, axis=-3) if array.shape[-3] > 1 else array
        return rows[..., 0]

    return [Value(op.shape, tuple(facet.map(move) for facet in free), x.constant)]


def image(analysis: Analysis, op: Op) -> list[Value]:
    """`col2im`: (N, C*k, L) -> (N, C, H, W); the k rows of a channel go together."""
    x = op.value("input")
    free = freeze_along(analysis, op, x, [x.rank - 1], "is put into windows")
    k = prod(op.attrs["kernel_size"])
    facets = []
    for facet in free:
        if x.rank - 2 not in facet.dims:
            facets.append(facet.map(lambda array: array[..., None]))
            continue
        lead = facet.labels.shape[:-2]
        rows = facet.labels.reshape(*lead, -1, k)
        analysis.unite(rows, rows[..., :1])
        zero = np.asarray(facet.zero.reshape(*lead, -1, k).all(axis=-1), dtype=np.bool_)
        facets.append(Facet(rows[..., 0], zero).map(_as_map))
    return [Value(op.shape, tuple(facets), x.constant)]


def _as_map(array: Any) -> Any:
    return array[..., None, None]


def pairs(analysis: Analysis, op: Op) -> list[Value]:
    """Real and imaginary part as a last dimension of two, taken away or added."""
    x = op.value("input")
    if len(op.shape) > x.rank:
        return [Value(op.shape, tuple(f.map(lambda array: array[..., None]) for f in x.facets), x.constant)]
    free = freeze_along(analysis, op, x, [x.rank - 1], "is a real or an imaginary part")
    return [Value(op.shape, tuple(f.map(lambda array: array[..., 0]) for f in free), x.constant)]


def _roll_dims(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": attrs.get("dims") or list(range(inputs["input"].rank)), "keeps_zero": True}


def _one_dim(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": [attrs.get("dim", attrs.get("axis", -1))]}


def _first_dim(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": [attrs.get("axis", 0)]}


def _one_dim_kept(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**_one_dim(attrs, inputs), "keeps_zero": True}


def _dims_kept(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    dims = attrs.get("dim")
    dims = list(range(inputs["input"].rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return {**attrs, "dims": dims, "keeps_zero": True}


def _last_two(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": [-1, -2], "keeps_zero": True}


def _axis_input(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": [int(inputs["axis"].data)], "keeps_zero": not attrs.get("exclusive", 0)}


def _sequences(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"dims": [attrs.get("batch_axis", 1), attrs.get("time_axis", 0)], "keeps_zero": True}


_AXIS_INPUT = Binding(inputs=("input", "axis"), needs=("axis",), read=_axis_input)
_AXIS = Binding(inputs=("input", "k"), read=_one_dim)

RULES = (
    Rule("flip", flip, aten={"flip": Binding()}, moves=True),
    Rule("roll", along_dims, aten={"roll": Binding(read=_roll_dims)}),
    Rule(
        "sorting or accumulation",
        along_dims,
        aten={
            name: Binding(read=_one_dim)
            for name in ("sort", "argsort", "topk", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
        },
        onnx={"TopK": _AXIS, **dict.fromkeys(("CumSum", "CumProd"), _AXIS_INPUT)},
    ),
    Rule(
        "triangle",
        along_dims,
        aten={"tril": Binding(read=_last_two), "triu": Binding(read=_last_two)},
        onnx={"Trilu": Binding(inputs=("input", "k"), read=_last_two)},
    ),
    Rule(
        "reversed sequences",
        along_dims,
        onnx={"ReverseSequence": Binding(inputs=("input", "lengths"), read=_sequences)},
    ),
    Rule("index", index, resize_index, aten={"index": Binding()}, moves=True),
    Rule("window", window, aten={"unfold": Binding()}),
    Rule(
        "picking along a dimension",
        picked_along,
        aten={
            **{name: Binding(read=_one_dim) for name in ("gather", "scatter.src", "scatter_add", "index_add")},
            **{name: Binding(read=_one_dim) for name in ("index_copy", "take_along_dim", "scatter_reduce.two")},
        },
        onnx={
            "GatherElements": Binding(inputs=("input", "index"), read=_first_dim),
            **dict.fromkeys(
                ("ScatterElements", "Scatter"), Binding(inputs=("input", "index", "source"), read=_first_dim)
            ),
        },
    ),
    Rule(
        "transform of frequencies",
        along_dims,
        aten={
            **{f"fft_{kind}fft": Binding(read=_one_dim_kept) for kind in ("", "i", "r", "ir", "h", "ih")},
            **{f"fft_{kind}fft2": Binding(read=_dims_kept) for kind in ("", "i", "r", "ir")},
            **{f"fft_{kind}fftn": Binding(read=_dims_kept) for kind in ("", "i", "r", "ir")},
            **{f"fft_{kind}fftshift": Binding(read=_dims_kept) for kind in ("", "i")},
        },
    ),
    Rule("difference of neighbours", differences, aten={"diff": Binding(read=_one_dim_kept)}),
    Rule("image to columns", columns, aten={"im2col": Binding()}),
    Rule("columns to image", image, aten={"col2im": Binding()}),
    Rule("complex from pairs", pairs, aten={"view_as_complex": Binding()}),
    Rule("pairs from complex", pairs, aten={"view_as_real": Binding()}),
    Rule("picking slices", gather_slices, onnx={"GatherND": Binding(inputs=("input", "index"))}, moves=True),
    Rule("replacing slices", scatter_slices, onnx={"ScatterND": Binding(inputs=("input", "index", "source"))}),
)

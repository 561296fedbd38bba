"""Operators that pick or move single positions: advanced indexing, rolls, flips, windows, cumulative sums.

They move data along some dimensions. Channels along the other dimensions pass; channels along a dimension
that is shifted, windowed or picked by computed indices are frozen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphprune.passes.channels import movement
from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.value import Facet, Value


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
    chosen = indices[indexed[0]].data.astype(np.int64) % len(kept)
    position = np.cumsum(kept) - 1
    return {"indices": [position[chosen[kept[chosen]]] if item is not None else None for item in indices]}


def window(analysis: Analysis, op: Op) -> list[Value]:
    """Sliding windows along spatial dimensions; the result's other dimensions are those of the input."""
    x = op.value("input")
    dim = op.attrs["dimension"] % x.rank
    free = freeze_along(analysis, op, x, [dim], "is read in windows")
    return [Value(op.shape, tuple(f.map(lambda array: array[..., None]) for f in free), x.constant)]


def gather(analysis: Analysis, op: Op) -> list[Value]:
    """`x.gather(dim, index)`: every position is picked by itself."""
    for value in op.values():
        analysis.freeze_value(value, op, "every position is picked by itself")
    return [Value(shape) for shape in op.out_shapes]


def _roll_dims(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": attrs.get("dims") or list(range(inputs["input"].rank)), "keeps_zero": True}


def _one_dim(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**attrs, "dims": [attrs.get("dim", attrs.get("axis", -1))]}


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
            name: Binding(read=_one_dim) for name in ("sort", "argsort", "topk", "cumsum", "cumprod", "logcumsumexp")
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
        "gather",
        gather,
        aten={"gather": Binding()},
        onnx=dict.fromkeys(
            ("GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter"),
            Binding(inputs=("input", "index", "updates")),
        ),
    ),
)

"""Reductions, pooling and resampling: positions are mixed, channels are not.

A reduction over channels is a contraction without weights: exact only for sums of zeros. One that says where among
them an extremum stands leaves them as they are: without some of them, the same number would mean another channel.
"""

from dataclasses import replace
from typing import Any

from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import broadcast, first_zero
from graphprune.passes.channels.labels import keep_dims
from graphprune.passes.channels.value import Facet, Value


def _reduced_dims(op: Op, rank: int) -> tuple[int, ...]:
    dims = op.attrs.get("dim")
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(sorted({d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)}))


def _reduce(analysis: Analysis, op: Op, sums: bool, zero_stays: bool) -> list[Value]:
    x = op.value("input")
    if op.attrs.get("noop"):
        return [x.with_facets(x.facets)]
    dims = _reduced_dims(op, x.rank)
    keepdim = bool(op.attrs.get("keepdim", False))
    facets = []
    for facet in x.facets:
        if not any(dim in facet.dims for dim in dims):
            facets.append(_shrunk(facet if zero_stays else facet.with_zero(False), dims, keepdim))
            continue
        settled = analysis.settle_facet(facet) if len(facet.dims) > 1 else facet
        if not any(dim in settled.dims for dim in dims):
            facets.append(_shrunk(settled.with_zero(False), dims, keepdim))
        elif _gives_positions(op):
            analysis.freeze(settled, op, "gives positions among channels")
        elif sums:
            analysis.contract(settled.labels, settled.zero, op)
        else:
            analysis.inexact(settled.labels, op, "a statistic over channels")
    first, *rest = (Value(shape, tuple(facets), constant=x.constant) for shape in op.out_shapes)
    if op.attrs.get("positions", 1) == 1:  # of a zero: zeros are found anywhere
        rest = [value.with_facets(tuple(facet.with_zero(False) for facet in value.facets)) for value in rest]
    return [first, *rest]


def _gives_positions(op: Op) -> bool:
    """Is the result that says where the others were found, if there is one, read by anybody?"""
    at = op.attrs.get("positions", 1)
    return at is not None and at < len(op.out_shapes) and at not in op.unread


def _shrunk(facet: Facet, dims: tuple[int, ...], keepdim: bool) -> Facet:
    kept = [d for d in range(facet.labels.ndim) if d not in dims]

    def move(array: Any) -> Any:
        array = keep_dims(array, kept)
        return array if keepdim else array.reshape([array.shape[d] for d in kept])

    return facet.map(move)


def reduce_sum(analysis: Analysis, op: Op) -> list[Value]:
    """Sums: a channel of zeros adds nothing."""
    return _reduce(analysis, op, sums=True, zero_stays=True)


def reduce_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Norms are sums of powers, or the largest; of an order below zero, zeros count."""
    order = op.attrs.get("ord", op.attrs.get("p", 2))
    return _reduce(analysis, op, sums=order is None or order >= 0, zero_stays=True)


def reduce_other(analysis: Analysis, op: Op) -> list[Value]:
    """Means and extrema: of zeros they give zero; over channels they are inexact."""
    return _reduce(analysis, op, sums=False, zero_stays=True)


def reduce_nonzero(analysis: Analysis, op: Op) -> list[Value]:
    """Reductions of zeros that are not zero (logsumexp), and where an extremum of zeros stands (argmax)."""
    return _reduce(analysis, op, sums=False, zero_stays=False)


def spatial(analysis: Analysis, op: Op) -> list[Value]:
    """Pooling and resampling over the last dimensions; zero channels stay zero.

    Which dimensions are mixed is read from the sizes and from the operator's number of spatial dimensions.
    """
    x = op.value("input")
    mixed = range(x.rank - op.attrs["spatial"], x.rank)
    facets = []
    for facet in x.facets:
        if any(dim in mixed for dim in facet.dims):
            analysis.freeze(facet, op, "mixes positions")
        else:
            facets.append(facet)
    where = tuple(facet.with_zero(False) for facet in facets)  # a second result holds positions
    return [Value(shape, where if number else tuple(facets)) for number, shape in enumerate(op.out_shapes)]


def regions(analysis: Analysis, op: Op) -> list[Value]:
    """Samples of the positions (N, C, ...) at places that other inputs name; the first dimension may change."""
    x = op.value("input")
    facets = []
    for facet in x.facets:
        if facet.dims == (1,):
            facets.append(facet)
        else:
            analysis.freeze(facet, op, "mixes positions")
    return [Value(op.shape, tuple(facets))]


def unpool(analysis: Analysis, op: Op) -> list[Value]:
    """The inverse of a maximum pooling, whose indices go with the channels."""
    x, indices = op.value("input"), op.value("indices")
    met = broadcast(analysis, replace(op, out_shapes=(x.shape,)), [x, indices], first_zero)
    rest = replace(op, inputs={"input": met}, attrs={"spatial": op.attrs.get("spatial", x.rank - 2)})
    return spatial(analysis, rest)


def resize_resample(op: Op, cut: Cut) -> dict[str, Any]:
    """ONNX Resize may repeat the size of every dimension, or of those that it names."""
    if op.optional("sizes") is None or not cut.outputs[0]:
        return {}
    rank = len(op.shape)
    dims = [axis % rank for axis in op.attrs.get("axes") or range(rank)]
    return {"sizes": [int(cut.outputs[0][d].sum()) if d in cut.outputs[0] else None for d in dims]}


def _pools(*names: str) -> dict[str, Binding]:
    return {name.format(n): Binding(fixed={"spatial": n}) for name in names for n in (1, 2, 3)}


def _onnx_spatial(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    return {**attrs, "spatial": inputs["input"].rank - 2}


def _onnx_resize(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    return {"spatial": inputs["input"].rank - 2, "axes": attrs.get("axes")}


def _onnx_dims(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    axes = inputs.get("axes")
    dims = attrs.get("axes") if axes is None or axes.data is None else axes.data.tolist()
    if not dims and attrs.get("noop_with_empty_axes", 0):
        return {"dim": [], "noop": True}
    return {"dim": list(dims) if dims else None, "keepdim": attrs.get("keepdims", 1)}


def _onnx_axis(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    return {"dim": attrs.get("axis", 0), "keepdim": attrs.get("keepdims", 1), "positions": 0}


_POOL = Binding(inputs=("input",), read=_onnx_spatial)
_REDUCE = Binding(inputs=("input", "axes"), needs=("axes",), read=_onnx_dims)
_ARG = Binding(inputs=("input",), read=_onnx_axis)

RULES = (
    Rule("sum", reduce_sum, aten={"sum": Binding()}, onnx={"ReduceSum": _REDUCE}),
    Rule(
        "norm",
        reduce_norm,
        aten={name: Binding() for name in ("linalg_vector_norm", "norm")},
        onnx={f"Reduce{name}": _REDUCE for name in ("L1", "L2", "SumSquare")},
    ),
    Rule(
        "mean or extremum",
        reduce_other,
        aten={
            **{name: Binding() for name in ("mean", "amax", "amin", "var", "std", "median", "kthvalue", "mode")},
            **{name: Binding() for name in ("max", "min", "max.dim", "min.dim", "var.correction")},
            **{name: Binding(fixed={"positions": None}) for name in ("var_mean", "std_mean", "aminmax")},
        },
        onnx={f"Reduce{name}": _REDUCE for name in ("Mean", "Max", "Min")},
    ),
    Rule(
        "reduction, not zero at zero",
        reduce_nonzero,
        aten={name: Binding() for name in ("logsumexp", "prod", "all", "any")},
        onnx={f"Reduce{name}": _REDUCE for name in ("LogSum", "LogSumExp", "Prod")},
    ),
    Rule(
        "position of an extremum",
        reduce_nonzero,
        aten={name: Binding(fixed={"positions": 0}) for name in ("argmax", "argmin")},
        onnx=dict.fromkeys(("ArgMax", "ArgMin"), _ARG),
    ),
    Rule(
        "pooling or resampling",
        spatial,
        resize_resample,
        aten={
            **_pools("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d"),
            **_pools("max_pool{}d_with_indices"),
            **{f"_adaptive_avg_pool{n}d": Binding(fixed={"spatial": n}) for n in (2, 3)},
            **{f"upsample_{kind}.vec": Binding(fixed={"spatial": 2}) for kind in ("bilinear2d", "bicubic2d")},
            **{f"upsample_{kind}": Binding(fixed={"spatial": 2}) for kind in ("nearest2d", "bilinear2d", "bicubic2d")},
            **{f"_upsample_{kind}.vec": Binding(fixed={"spatial": 2}) for kind in ("bilinear2d_aa", "bicubic2d_aa")},
            **{
                f"{kind}{n}d.vec": Binding(fixed={"spatial": n})
                for kind in ("upsample_nearest", "_upsample_nearest_exact")
                for n in (1, 2, 3)
            },
            "upsample_linear1d.vec": Binding(fixed={"spatial": 1}),
            "upsample_trilinear3d.vec": Binding(fixed={"spatial": 3}),
        },
        onnx={
            **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _POOL),
            **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _POOL),
            "Upsample": Binding(inputs=("input", "scales"), read=_onnx_resize),
            "Resize": Binding(inputs=("input", "roi", "scales", "sizes"), read=_onnx_resize),
        },
        moves=True,
    ),
    Rule(
        "sampling of regions",
        regions,
        aten={name: Binding() for name in ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")},
        onnx={
            "GridSample": Binding(inputs=("input", "grid")),
            "RoiAlign": Binding(inputs=("input", "rois", "batch_indices")),
            "MaxRoiPool": Binding(inputs=("input", "rois")),
        },
    ),
    Rule(
        "unpooling",
        unpool,
        aten={f"max_unpool{n}d": Binding(fixed={"spatial": n}) for n in (2, 3)},
        onnx={"MaxUnpool": Binding(inputs=("input", "indices", "output_shape"))},
    ),
)

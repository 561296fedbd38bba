"""Normalizations.

Batch norm scales every channel by itself: exact. The others compute statistics over several channels, so
removing one changes the rest: *inexact*, unless whole groups go (group norm) or each channel has
statistics of its own (instance norm).
"""

from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import Combine, Zero, first_zero, never_zero
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.operators import Couple
from graphprune.passes.channels.value import Facet, Value


def _scaled(analysis: Analysis, op: Op, x: Axis, names: tuple[str, ...]) -> list[Axis | None]:
    """Unite a channel axis with per-channel parameters; the parameters' own axes."""
    found = []
    for name in names:
        value = op.optional(name)
        dims = [] if value is None else [dim for dim, size in enumerate(value.shape) if size > 1]
        axis = analysis.axis(value, dims[0]) if len(dims) == 1 else None
        if axis is not None:
            analysis.unite(x.labels, axis.labels)
        elif dims:
            analysis.freeze(x.labels, op, f"its {name} cannot be cut")
        found.append(axis)
    return found


def _zero(axis: Axis | None, absent: bool) -> Mask | bool:
    return absent if axis is None else axis.zero


def _pin_parameters(analysis: Analysis, op: Op, names: tuple[str, ...]) -> None:
    for name in names:
        value = op.optional(name)
        if value is not None:
            analysis.freeze_value(value, op, "normalizes channels that cannot be cut")


def batch_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Y = (x - mean) / sqrt(var + eps) * weight + bias, per channel of dimension 1."""
    x = op.value("input")
    names = ("weight", "bias", "running_mean", "running_var")
    if op.attrs.get("training_mode"):
        for value in op.values():
            analysis.freeze_value(value, op, "is in training mode")
        return [Value(shape) for shape in op.out_shapes]
    axis = analysis.axis(x, 1) if x.rank > 1 else None
    if op.optional("running_mean") is None:
        _position_statistics(analysis, op, x)
    if axis is None:
        _pin_parameters(analysis, op, names)
        return [Value(op.shape, tuple(f.with_zero(False) for f in x.facets), x.constant)]
    weight, bias, mean, _ = _scaled(analysis, op, axis, names)
    scaled_off = _zero(weight, False) | (axis.zero & _zero(mean, True))
    zero = _zero(bias, op.optional("bias") is None) & scaled_off
    rest = tuple(f.with_zero(False) for f in x.facets if 1 not in f.dims)
    channels = Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1)
    return [Value(op.shape, (channels, *rest), x.constant)]


def _position_statistics(analysis: Analysis, op: Op, x: Value) -> None:
    """Statistics of this very input (a standardized weight, laid out as a map): what goes along positions is missed."""
    for facet in x.facets:
        if 1 not in facet.dims:
            analysis.inexact(facet.labels, op, "statistics over positions")


def _freeze_positions(analysis: Analysis, op: Op, x: Value, first: int) -> None:
    """Statistics over the samples (`first` = 0) and positions: nothing may go there."""
    for facet in x.facets:
        if 1 not in facet.dims and any(dim >= first for dim in facet.dims):
            analysis.freeze(facet, op, "statistics over positions")


def instance_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Statistics of each channel of each sample by itself: positions are mixed, channels are not.

    Where channels lie along positions too, what the operator calls a channel is a group of them, as in a group norm:

    1. As many groups as channels in one, or more: whole groups go, with their scales and shifts.
    2. Else the same positions of every group go, which changes its statistics: inexact.
    """
    x = op.value("input")
    names = ("weight", "bias", "running_mean", "running_var")
    mixed: list[Facet] = []
    facets: list[Facet] = []
    for facet in x.facets:
        grouped = any(dim > 1 for dim in facet.dims)
        (mixed if grouped and not _keep_whole_groups(analysis, facet) else facets).append(facet)
    for facet in mixed:  # case 2
        analysis.unite(facet.labels, facet.labels[:, :1])
        analysis.inexact(facet.labels, op, "statistics over channels")
    passing = [analysis.compress(facet).with_zero(False) for facet in mixed]
    rest = x.with_facets(tuple(facets))
    axis = analysis.axis(rest, 1)
    _freeze_positions(analysis, op, rest, 0)
    if axis is None:
        _pin_parameters(analysis, op, names)
        return [Value(op.shape, tuple(passing))]
    weight, bias, _, _ = _scaled(analysis, op, axis, names)
    zero = _zero(bias, op.optional("bias") is None) & (_zero(weight, False) | axis.zero)
    channels = Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1)
    return [Value(op.shape, (channels, *passing))]


def _keep_whole_groups(analysis: Analysis, facet: Facet) -> bool:
    """Unite the channels of each group where there are as many groups as channels in one, or more; was it so?"""
    rows = analysis.space.find(np.moveaxis(facet.labels, 1, 0).reshape(facet.labels.shape[1], -1))
    if not 1 < len(rows) >= len(np.unique(rows[0])):
        return False
    analysis.unite(rows, rows[:, :1])
    return True


def layer_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Statistics over the last dimensions: their channels are inexact."""
    x = op.value("input")
    first = x.rank - len(op.attrs["normalized_shape"])
    facets: list[Facet] = []
    for facet in x.facets:
        if not any(dim >= first for dim in facet.dims):
            facets.append(facet.with_zero(False))
            continue
        settled = analysis.settle_facet(facet)
        if any(dim < first for dim in settled.dims):
            facets.append(settled.with_zero(False))
            continue
        analysis.inexact(settled.labels, op, "statistics over channels")
        scaled = [_cut_along(analysis, op, settled, name, first) for name in ("weight", "bias")]
        zero: Mask | bool = settled.zero & (not op.attrs.get("centered", True)) if scaled[0] is None else scaled[0]
        facets.append(settled.with_zero(zero if scaled[1] is None else zero & scaled[1]))
    return [Value(op.shape, tuple(facets))]


def _cut_along(analysis: Analysis, op: Op, facet: Facet, name: str, first: int) -> Mask | None:
    """Unite channels with those of a parameter; where it is zero, or None where there is no parameter."""
    value = op.optional(name)
    if value is None:
        return None
    axis = analysis.axis(value, facet.dims[0] - first) if facet.dims else None
    if axis is None:
        analysis.freeze(facet, op, f"its {name} cannot be cut")
        return np.zeros_like(facet.zero)
    analysis.unite(facet.labels.ravel(), axis.labels)
    return axis.zero.reshape(facet.labels.shape)


def resize_layer_norm(op: Op, cut: Cut) -> dict[str, Any]:
    """`normalized_shape` mirrors the last dimensions."""
    x = op.value("input")
    shape: list[int | None] = [None] * len(op.attrs["normalized_shape"])
    for offset in range(len(shape)):
        kept = cut.kept("input", x.rank - len(shape) + offset)
        if kept is not None:
            shape[offset] = int(kept.sum())
    return {"normalized_shape": shape} if any(size is not None for size in shape) else {}


def _whole_groups(op: Op) -> bool:
    groups, channels = op.attrs["num_groups"], op.value("input").shape[1]
    return groups > 1 and groups >= channels // groups


def group_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Statistics over groups of channels.

    1. More groups than channels in one: whole groups go, which is exact.
    2. Else the same position of every group goes, which changes the statistics: inexact.
    """
    x, groups = op.value("input"), op.attrs["num_groups"]
    axis = analysis.axis(x, 1)
    _freeze_positions(analysis, op, x, 2)
    if axis is None:
        _pin_parameters(analysis, op, ("weight", "bias"))
        return [Value(op.shape)]
    rows = axis.labels.reshape(groups, -1)
    if _whole_groups(op):
        analysis.unite(rows, rows[:, :1])
    else:
        analysis.unite(rows, rows[:1])
        analysis.inexact(axis.labels, op, "statistics over channels")
    given = op.optional("weight")
    if given is not None and given.shape != (x.shape[1],):
        return [_scaled_by_group(analysis, op, x, axis)]
    weight, bias = _scaled(analysis, op, axis, ("weight", "bias"))
    zero = _zero(bias, op.optional("bias") is None) & (_zero(weight, False) | axis.zero)
    return [Value(op.shape, (Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1),))]


def _scaled_by_group(analysis: Analysis, op: Op, x: Value, axis: Axis) -> Value:
    """ONNX before opset 21: one scale and one shift for each group."""
    rows = axis.labels.reshape(op.attrs["num_groups"], -1)
    for name in ("weight", "bias"):
        own = analysis.axis(op.optional(name), 0)
        if own is not None and _whole_groups(op):
            analysis.unite(rows[:, 0], own.labels)
        elif own is not None:
            analysis.space.freeze(own.labels, None)
        elif _whole_groups(op):
            analysis.freeze(axis.labels, op, f"its {name} cannot be cut")
    return Value(op.shape, (axis.facet(x.rank, 1).with_zero(False),))


def resize_group_norm(op: Op, cut: Cut) -> dict[str, Any]:
    """`num_groups` follows where whole groups went."""
    kept = cut.kept("input", 1)
    if kept is None or not _whole_groups(op):
        return {}
    return {"num_groups": int(kept.reshape(op.attrs["num_groups"], -1).any(axis=1).sum())}


def per_channel(parameters: tuple[str, ...], dim: int, combine: Combine) -> Couple:
    """The coupling of operators on each channel along `dim` by itself, with parameters of one number a channel.

    Parameters may have one number for all channels, or be absent.

    Args:
        parameters: the rule's names of them.
        dim: the dimension that they go along.
        combine: where the result is zero, given that of the input and of each parameter, in this order.
    """

    def couple(analysis: Analysis, op: Op) -> list[Value]:
        x = op.value("input")
        rest = [f for f in x.facets if x.rank <= dim or dim not in f.dims]
        others: list[Zero] = [None] * len(parameters)
        facets = [f.with_zero(combine([f.zero, *others])) for f in rest]
        axis = analysis.axis(x, dim) if x.rank > dim else None
        if axis is None:
            _pin_parameters(analysis, op, parameters)
        else:
            own = _scaled(analysis, op, axis, parameters)
            zero = combine([axis.zero, *(None if a is None else a.zero for a in own)])
            facets.append(Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, dim))
        return [Value(op.shape, tuple(facets), constant=all(value.constant for value in op.values()))]

    return couple


def softmax(analysis: Analysis, op: Op) -> list[Value]:
    """exp(x) / sum(exp(x)) along `dim`: a removed channel changes the sum."""
    x = op.value("input")
    dim = op.attrs["dim"] % max(x.rank, 1)
    dims = range(dim, x.rank) if op.attrs.get("flattens") else (dim,)
    facets = []
    for facet in x.facets:
        if any(d in facet.dims for d in dims):
            facet = analysis.settle_facet(facet)
        if any(d in facet.dims for d in dims):
            analysis.inexact(facet.labels, op, "softmax over channels")
        facets.append(facet.with_zero(never_zero([])))
    return [Value(op.shape, tuple(facets))]


def normalize_dims(analysis: Analysis, op: Op) -> list[Value]:
    """Divided by a statistic over `dims` that sums of powers give (`sums`: zeros add nothing), or others."""
    x = op.value("input")
    dims = [dim % x.rank for dim in op.attrs["dims"]]
    facets = []
    for facet in x.facets:
        if any(dim in dims for dim in facet.dims):
            facet = analysis.settle_facet(facet)
            if not any(dim in dims for dim in facet.dims):
                pass
            elif op.attrs["sums"]:
                analysis.contract(facet.labels, facet.zero, op)
            else:
                analysis.inexact(facet.labels, op, "statistics over channels")
        facets.append(facet)
    return [Value(op.shape, tuple(facets), x.constant)]


def _read_lp(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    return {"dims": [attrs.get("axis", -1)], "sums": True}


def _read_neighbors(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    return {"dims": [1], "sums": False}


_NORM_INPUTS = ("input", "weight", "bias", "running_mean", "running_var")


def _read_layer_norm(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    x = inputs["input"]
    return {**attrs, "normalized_shape": list(x.shape[attrs.get("axis", -1) % x.rank :])}


def _read_softmax(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """Before opset 13, softmax ran over all dimensions from `axis` on, 1 by default."""
    old = attrs.get("opset", 13) < 13
    return {"dim": attrs.get("axis", 1 if old else -1), "flattens": old}


def _write_nothing(attrs: dict[str, Any], old: Any) -> dict[str, Any]:
    return {}


RULES = (
    Rule(
        "batch norm",
        batch_norm,
        aten={"batch_norm": Binding(), "_native_batch_norm_legit_no_training": Binding()},
        onnx={"BatchNormalization": Binding(inputs=_NORM_INPUTS)},
        pointwise=lambda op: op.optional("running_mean") is not None,
    ),
    Rule(
        "instance norm",
        instance_norm,
        aten={"instance_norm": Binding()},
        onnx={"InstanceNormalization": Binding(inputs=_NORM_INPUTS[:3])},
    ),
    Rule(
        "layer norm",
        layer_norm,
        resize_layer_norm,
        aten={"layer_norm": Binding(), "rms_norm": Binding(fixed={"centered": False})},
        onnx={
            name: Binding(
                inputs=_NORM_INPUTS[:3], fixed={"centered": centered}, read=_read_layer_norm, write=_write_nothing
            )
            for name, centered in (("LayerNormalization", True), ("RMSNormalization", False))
        },
    ),
    Rule(
        "group norm",
        group_norm,
        resize_group_norm,
        aten={"group_norm": Binding()},
        onnx={"GroupNormalization": Binding(inputs=_NORM_INPUTS[:3])},
    ),
    # Not MeanVarianceNormalization: of a channel that is zero throughout onnxruntime (1.32) makes NaN.
    Rule(
        "statistics along dimensions",
        normalize_dims,
        onnx={
            name: Binding(inputs=("input",), read=read)
            for name, read in (
                ("LpNormalization", _read_lp),
                ("LRN", _read_neighbors),
            )
        },
    ),
    Rule(
        "parametric relu",
        per_channel(("weight",), 1, first_zero),
        aten={"prelu": Binding(names={"input": "self"}), "_prelu_kernel": Binding()},
    ),
    Rule(
        "softmax",
        softmax,
        aten={"softmax": Binding(), "log_softmax": Binding(), "_softmax": Binding(), "_log_softmax": Binding()},
        onnx={name: Binding(inputs=("input",), read=_read_softmax) for name in ("Softmax", "LogSoftmax", "Hardmax")},
    ),
)

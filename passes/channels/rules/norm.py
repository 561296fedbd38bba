"""Normalizations.

Batch norm scales every channel by itself: exact. The others compute statistics over several channels, so
removing one changes the rest: *inexact*, unless whole groups go (group norm) or each channel has
statistics of its own (instance norm).
"""

from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.coupling import never_zero
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Facet, Value


def _scaled(analysis: Analysis, op: Op, x: Axis, names: tuple[str, ...]) -> list[Axis | None]:
    """Unite a channel axis with per-channel parameters; the parameters' own axes."""
    found = []
    for name in names:
        value = op.optional(name)
        axis = analysis.axis(value, 0)
        if axis is not None:
            analysis.unite(x.labels, axis.labels)
        elif value is not None and value.shape != () and value.shape[0] > 1:
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
    axis = analysis.axis(x, 1) if x.rank > 1 else None
    if axis is None:
        _pin_parameters(analysis, op, names)
        return [Value(op.shape, tuple(f.with_zero(False) for f in x.facets))]
    weight, bias, mean, _ = _scaled(analysis, op, axis, names)
    scaled_off = _zero(weight, False) | (axis.zero & _zero(mean, True))
    zero = _zero(bias, op.optional("bias") is None) & scaled_off
    rest = tuple(f.with_zero(False) for f in x.facets if 1 not in f.dims)
    channels = Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1)
    return [Value(op.shape, (channels, *rest))]


def instance_norm(analysis: Analysis, op: Op) -> list[Value]:
    """Statistics of each channel of each sample by itself: positions are mixed, channels are not."""
    x = op.value("input")
    names = ("weight", "bias", "running_mean", "running_var")
    axis = analysis.axis(x, 1)
    for facet in x.facets:
        if 1 not in facet.dims:
            analysis.freeze(facet, op, "statistics over positions")
    if axis is None:
        _pin_parameters(analysis, op, names)
        return [Value(op.shape)]
    weight, bias, _, _ = _scaled(analysis, op, axis, names)
    zero = _zero(bias, op.optional("bias") is None) & (_zero(weight, False) | axis.zero)
    return [Value(op.shape, (Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1),))]


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
        analysis.inexact(settled.labels, op, "statistics over channels")
        zero: Mask | bool = True
        for name in ("weight", "bias"):
            value = op.optional(name)
            if value is None:
                zero = zero & (settled.zero if name == "weight" else True)
                continue
            axis = analysis.axis(value, settled.dims[0] - first) if settled.dims else None
            if axis is None:
                analysis.freeze(settled, op, f"its {name} cannot be cut")
                zero = False
            else:
                analysis.unite(settled.labels.ravel(), axis.labels)
                zero = zero & axis.zero.reshape(settled.labels.shape)
        facets.append(settled.with_zero(zero))
    return [Value(op.shape, tuple(facets))]


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
    for facet in x.facets:
        if any(dim > 1 for dim in facet.dims):
            analysis.freeze(facet, op, "statistics over positions")
    if axis is None:
        _pin_parameters(analysis, op, ("weight", "bias"))
        return [Value(op.shape)]
    rows = axis.labels.reshape(groups, -1)
    if _whole_groups(op):
        analysis.unite(rows, rows[:, :1])
    else:
        analysis.unite(rows, rows[:1])
        analysis.inexact(axis.labels, op, "statistics over channels")
    weight, bias = _scaled(analysis, op, axis, ("weight", "bias"))
    zero = _zero(bias, op.optional("bias") is None) & (_zero(weight, False) | axis.zero)
    return [Value(op.shape, (Axis(axis.labels, np.broadcast_to(zero, axis.labels.shape)).facet(x.rank, 1),))]


def resize_group_norm(op: Op, cut: Cut) -> dict[str, Any]:
    """`num_groups` follows where whole groups went."""
    kept = cut.kept("input", 1)
    if kept is None or not _whole_groups(op):
        return {}
    return {"num_groups": int(kept.reshape(op.attrs["num_groups"], -1).any(axis=1).sum())}


def prelu(analysis: Analysis, op: Op) -> list[Value]:
    """max(0, x) + weight * min(0, x), with one weight for all channels or one for each."""
    x, weight = op.value("input"), op.value("weight")
    axis = analysis.axis(x, 1) if x.rank > 1 else None
    slope = analysis.axis(weight, 0)
    if axis is not None and slope is not None:
        analysis.unite(axis.labels, slope.labels)
    elif slope is not None:
        analysis.space.freeze(slope.labels, None)
    return [Value(op.shape, x.facets)]


def softmax(analysis: Analysis, op: Op) -> list[Value]:
    """exp(x) / sum(exp(x)) along `dim`: a removed channel changes the sum."""
    x = op.value("input")
    dim = op.attrs["dim"] % max(x.rank, 1)
    dims = range(dim, x.rank) if op.attrs.get("flattens") else (dim,)
    facets = []
    for facet in x.facets:
        if any(d in facet.dims for d in dims):
            analysis.inexact(facet.labels, op, "softmax over channels")
        facets.append(facet.with_zero(never_zero([])))
    return [Value(op.shape, tuple(facets))]


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
        aten={"layer_norm": Binding(), "rms_norm": Binding()},
        onnx={
            name: Binding(inputs=_NORM_INPUTS[:3], read=_read_layer_norm, write=_write_nothing)
            for name in ("LayerNormalization", "RMSNormalization")
        },
    ),
    Rule(
        "group norm",
        group_norm,
        resize_group_norm,
        aten={"group_norm": Binding()},
        onnx={"GroupNormalization": Binding(inputs=_NORM_INPUTS[:3])},
    ),
    Rule("parametric relu", prelu, aten={"prelu": Binding(names={"input": "self"}), "_prelu_kernel": Binding()}),
    Rule(
        "softmax",
        softmax,
        aten={"softmax": Binding(), "log_softmax": Binding(), "_softmax": Binding(), "_log_softmax": Binding()},
        onnx={name: Binding(inputs=("input",), read=_read_softmax) for name in ("Softmax", "LogSoftmax", "Hardmax")},
    ),
)

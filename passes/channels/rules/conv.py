"""Convolution: dense, grouped, depthwise (with or without multiplier), transposed, 1-3 dimensions.

    y[n, o] = sum over i of w[o, i] * x[n, i] + b[o]

Dense: the input's channels are summed over, so they meet the weight's input slices; the output's are the
weight's output slices. With g groups, x and y are (g, I/g) and (g, O/g), and a cut must leave equal groups:

1. *whole groups* go when there are more groups than channels in one (depthwise, ResNeXt): the input and
   output channels of a group are one coupled group, and the weight's inner dimension stays;
2. else *the same position in every group* goes: inputs are united across groups, so are outputs.

Shapes: weight (O, I/g, *kernel); transposed: (I, O/g, *kernel). Bias (O,).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Facet, Value
from graphprune.passes.channels.zeros import nonzero_matrix, silent_rows


def _silent(weight: Value, weight_zero: Mask, x_zero: Mask, groups: int, transposed: bool) -> Mask:
    """Per output channel: is it zero for the given weights and dead inputs? As `weight_zero` where they are unknown."""
    if weight.data is None or (groups == 1 and not x_zero.any()):
        return weight_zero  # all inputs are heard: the weight's own slices say it
    if groups == 1 and not transposed:
        return silent_rows(weight.data, ~np.broadcast_to(x_zero, weight.shape[1:2]), weight_zero)
    loud = nonzero_matrix(weight.data)
    if transposed:  # (I, O/g) -> (O, I/g)
        inputs, outs = loud.shape
        loud = loud.reshape(groups, inputs // groups, outs).transpose(0, 2, 1).reshape(groups * outs, -1)
    outs, inner = loud.shape
    heard = ~np.broadcast_to(x_zero, (groups * inner,)).reshape(groups, 1, inner)
    return ~np.any(loud.reshape(groups, outs // groups, inner) & heard, axis=2).ravel()


def _out_zero(op: Op, weight_zero: Mask, x_zero: Mask, bias: Axis | None) -> Mask:
    zero = _silent(op.value("weight"), weight_zero, x_zero, op.attrs["groups"], op.attrs["transposed"])
    if op.optional("bias") is not None:
        zero = zero & bias.zero if bias is not None else np.zeros_like(zero)
    return zero


def convolution(analysis: Analysis, op: Op) -> list[Value]:
    """Couple a convolution; see the module's text for cases 1 and 2."""
    x, weight, bias = op.value("input"), op.value("weight"), op.optional("bias")
    groups, transposed = op.attrs["groups"], op.attrs["transposed"]
    channel = channel_dim(op)
    x_axis = analysis.axis(x, channel)
    passing, still = [], set() if op.optional("offset") is not None else _still_dims(op, channel)
    for facet in x.facets:
        if channel in facet.dims:
            continue
        if all(dim < channel or dim in still for dim in facet.dims):
            passing.append(facet.with_zero(False))
        else:
            analysis.freeze_value(x.with_facets((facet,)), op, "mixes positions")
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    w_in, w_out = analysis.axis(weight, in_dim), analysis.axis(weight, out_dim)
    analysis.outputs_along(weight, out_dim)
    count = weight.shape[out_dim] * (groups if transposed else 1)
    out = _dense(analysis, op, x_axis, w_in, w_out) if groups == 1 else _grouped(analysis, op, x_axis, w_in, w_out)
    if out is None and bias is not None:
        analysis.freeze_value(bias, op, _why_whole(weight, out_dim))
    x_zero = np.zeros(1, dtype=np.bool_) if x_axis is None else x_axis.zero
    facets = list(passing)
    if out is not None:
        b = analysis.axis(bias, 0)
        zero = _out_zero(op, np.broadcast_to(out.zero, (count,)), x_zero, b)
        if b is not None:
            analysis.unite(out.labels, b.labels)
        elif bias is not None and bias.shape[0] > 1:
            analysis.freeze(out.labels, op, "its bias cannot be cut")
        facets.append(Axis(out.labels, zero).facet(x.rank, channel))
    _cost(analysis, op, channel, passing, (w_out, w_in) if in_dim else (w_in, w_out))
    return [Value(op.shape, tuple(facets))]


def _still_dims(op: Op, channel: int) -> set[int]:
    """Dimensions of positions that are neither mixed nor moved: the kernel is 1 there, as in a linear layer."""
    x, weight = op.value("input"), op.value("weight")
    strides = op.attrs.get("stride", op.attrs.get("strides")) or 1
    steps = [strides] if isinstance(strides, int) else list(strides)
    return {
        dim
        for axis, dim in enumerate(range(channel + 1, x.rank))
        if weight.shape[axis + 2] == 1 and steps[axis % len(steps)] == 1 and op.shape[dim] == x.shape[dim]
    }


def channel_dim(op: Op) -> int:
    """1, or 0 for an input without a batch dimension."""
    return op.value("input").rank - (op.value("weight").rank - 1)


def _cost(
    analysis: Analysis, op: Op, channel: int, passing: Sequence[Facet], weight_axes: tuple[Axis | None, Axis | None]
) -> None:
    """Every position times the weight; `passing` channels that lie along positions, `weight_axes` of its first two."""
    sizes = list(op.value("input").shape if op.attrs["transposed"] else op.shape)
    along = {facet.dims[0]: facet.labels for facet in passing if len(facet.dims) == 1}
    positions = prod(size for dim, size in enumerate(sizes) if dim != channel and dim not in along)
    unlabeled = prod(size for dim, size in enumerate(op.value("weight").shape) if dim > 1 or weight_axes[dim] is None)
    axes = [axis.labels for axis in weight_axes if axis is not None]
    analysis.cost(op, float(positions * unlabeled), [*axes, *along.values()])


def _why_whole(weight: Value, dim: int) -> str:
    """Why a weight is not cut along its inputs, or its outputs.

    Kernels that are mixed of flat ones, as the experts of CondConv, have both in one dimension of a parameter. An index
    of that can go with one of the two, and goes with the one of which more can go.
    """
    if weight.along(dim):
        return "its weight is cut along its other side: both lie in one dimension of a parameter"
    return "its weight cannot be cut"


def _dense(analysis: Analysis, op: Op, x: Axis | None, w_in: Axis | None, w_out: Axis | None) -> Axis | None:
    if x is not None and w_in is not None:
        analysis.unite(x.labels, w_in.labels)
        analysis.contract(x.labels, x.zero | w_in.zero, op)
    elif x is not None:
        analysis.freeze(x.labels, op, _why_whole(op.value("weight"), 0 if op.attrs["transposed"] else 1))
    elif w_in is not None:
        analysis.space.freeze(w_in.labels, None)
    return w_out


def _grouped(analysis: Analysis, op: Op, x: Axis | None, w_in: Axis | None, w_out: Axis | None) -> Axis | None:
    groups, transposed = op.attrs["groups"], op.attrs["transposed"]
    weight = op.value("weight")
    ins = weight.shape[0] // groups if transposed else weight.shape[1]
    outs = weight.shape[1] if transposed else weight.shape[0] // groups
    first = w_in if transposed else w_out  # the weight's dimension 0 runs over the groups
    if groups >= max(ins, outs):  # case 1
        if first is None:
            if x is not None:
                analysis.freeze(x.labels, op, "its filters cannot be cut (a buffer with one for each channel can)")
            return None
        by_group = first.labels.reshape(groups, -1)
        analysis.unite(by_group, by_group[:, :1])
        if x is not None:
            analysis.unite(x.labels.reshape(groups, -1), by_group[:, :1])
        else:
            analysis.freeze(first.labels, op, "every group reads channels that cannot be cut")
        zero = first.zero.reshape(groups, -1).all(axis=1)
        return Axis(np.repeat(by_group[:, 0], outs), np.repeat(zero, outs))
    if x is not None:  # case 2
        rows = x.labels.reshape(groups, ins)
        analysis.unite(rows, rows[:1])
    out: Axis | None
    if transposed:
        if first is not None:
            by_group = first.labels.reshape(groups, ins)
            analysis.unite(by_group, by_group[:1])
        out = None if w_out is None else Axis(np.tile(w_out.labels, groups), np.tile(w_out.zero, groups))
        inner = None if first is None else Axis(first.labels, first.zero)
    else:
        out = w_out
        if out is not None:
            by_group = out.labels.reshape(groups, outs)
            analysis.unite(by_group, by_group[:1])
        inner = None if w_in is None else Axis(np.tile(w_in.labels, groups), np.tile(w_in.zero, groups))
    _meet(analysis, op, x, inner)
    return out


def _meet(analysis: Analysis, op: Op, x: Axis | None, inner: Axis | None) -> None:
    if x is not None and inner is not None:
        analysis.unite(x.labels, inner.labels)
        analysis.contract(x.labels, x.zero | inner.zero, op)
    elif x is not None:
        analysis.freeze(x.labels, op, _why_whole(op.value("weight"), 0 if op.attrs["transposed"] else 1))
    elif inner is not None:
        analysis.space.freeze(inner.labels, None)


def resize_groups(op: Op, cut: Cut) -> dict[str, Any]:
    """`groups` follows when whole groups went (case 1); it stays when every group got narrower (case 2)."""
    groups = op.attrs["groups"]
    if groups == 1:
        return {}
    first = cut.kept("weight", 0)
    inner = cut.kept("weight", 1)
    ins, outs = op.value("weight").shape[:2]
    per_group = ins // groups
    if first is None or inner is not None or not groups >= max(per_group, outs):
        return {}
    return {"groups": int(first.reshape(groups, -1).any(axis=1).sum())}


def deformable(analysis: Analysis, op: Op) -> list[Value]:
    """A convolution that reads at computed offsets, which no channel is removed from."""
    for name in ("offset", "mask"):
        value = op.optional(name)
        if value is not None:
            analysis.freeze_value(value, op, "offsets")
    if op.attrs.get("offset_group", 1) > 1:
        analysis.freeze_value(op.value("input"), op, "offsets for parts of the channels")
    return convolution(analysis, op)


_CONV = {"transposed": False}
_TRANSPOSED = {"transposed": True}
_ONNX_INPUTS = ("input", "weight", "bias")


def read_group(attrs: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """ONNX's `group` in the words of the rule."""
    return {**attrs, "groups": attrs.get("group", 1)}


def write_group(attrs: dict[str, Any], old: Any) -> dict[str, Any]:
    """The inverse of `read_group`."""
    return {"group": attrs["groups"]} if "groups" in attrs else {}


RULES = (
    Rule(
        "convolution",
        convolution,
        resize_groups,
        aten={
            **{f"conv{n}d": Binding(fixed=_CONV) for n in (1, 2, 3)},
            **{f"conv{n}d.padding": Binding(fixed=_CONV) for n in (1, 2, 3)},
            "conv_transpose1d": Binding(fixed=_TRANSPOSED),
            "conv_transpose2d.input": Binding(fixed=_TRANSPOSED),
            "conv_transpose3d.input": Binding(fixed=_TRANSPOSED),
            "convolution": Binding(),
        },
        onnx={
            "Conv": Binding(inputs=_ONNX_INPUTS, fixed=_CONV, read=read_group, write=write_group),
            "ConvTranspose": Binding(inputs=_ONNX_INPUTS, fixed=_TRANSPOSED, read=read_group, write=write_group),
        },
        sums=channel_dim,
    ),
    Rule(
        "deformable convolution",
        deformable,
        resize_groups,
        onnx={
            "DeformConv": Binding(
                inputs=("input", "weight", "offset", "bias", "mask"), fixed=_CONV, read=read_group, write=write_group
            )
        },
    ),
)

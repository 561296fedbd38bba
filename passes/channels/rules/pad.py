"""Padding: along positions it changes nothing; along channels, the padding is channels of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Binding, Cut, Op, Rule
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Facet, Value


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


def _write_onnx_pad(attrs: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    if "pads" not in attrs:
        return {}
    pads, axes = attrs["pads"], old.get("axes")
    dims = range(len(pads)) if axes is None else [int(a) % len(pads) for a in axes.data]
    return {"pads": [pads[d][0] for d in dims] + [pads[d][1] for d in dims]}


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


RULES = (
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

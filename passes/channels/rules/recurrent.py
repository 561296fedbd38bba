"""Recurrent layers in ONNX's form: RNN, GRU, LSTM.

    h_t = f(W x_t + R h_(t-1) + B)        with 1, 3 or 4 gates stacked along the first dimension of W, R and B

A hidden unit is one row of every gate in W, R and B, one column of R, and one element of each state: all of it goes
together, in both directions at once, since they lie in one tensor. The input's channels are summed over by W.

Zero stays zero: with all gates of a unit at zero, its candidate is tanh(0) = 0, so a state that starts at zero
never leaves it. Where the state starts from something else, or another activation is asked for, it may not.

Shapes: X (T, N, I), W (D, gates*H, I), R (D, gates*H, H), B (D, 2*gates*H), P (D, 3*H), states (D, N, H),
Y (T, D, N, H); with layout 1, X (N, T, I), states (N, D, H), Y (N, T, D, H).

Source: ONNX operators RNN, GRU, LSTM.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.value import Value

#: Activations f with f(0) = 0, as far as the candidate of a unit needs it.
_ZERO_AT_ZERO = frozenset({"tanh", "relu", "leakyrelu", "elu", "softsign", "thresholdedrelu", "scaledtanh"})
#: Which of the activations of one direction the candidate and the output go through.
_CANDIDATE = {1: (0,), 3: (1,), 4: (1, 2)}


def recurrent(analysis: Analysis, op: Op) -> list[Value]:
    """Couple a recurrent layer; see the module's text."""
    gates: int = op.attrs["gates"]
    weight, recurrence = op.value("weight"), op.value("recurrence")
    x = analysis.axis(op.value("input"), -1)
    _freeze_others(analysis, op, op.value("input"), {op.value("input").rank - 1})
    columns = analysis.axis(weight, 2)
    if x is not None and columns is not None:
        analysis.unite(x.labels, columns.labels)
        analysis.contract(x.labels, x.zero | columns.zero, op)
    elif x is not None:
        analysis.freeze(x.labels, op, "its weight cannot be cut")
    elif columns is not None:
        analysis.space.freeze(columns.labels, None)
    unit = _units(analysis, op, gates)
    if unit is None:
        for value in op.values():
            analysis.freeze_value(value, op, "its hidden units cannot be cut")
        return [Value(shape) for shape in op.out_shapes]
    analysis.contract(unit.labels, unit.zero | _axis(analysis, recurrence, 2, 1).zero, op)
    _count(analysis, op, weight, unit, x)
    results = []
    for shape in op.out_shapes:
        results.append(Value(shape, (unit.facet(len(shape), len(shape) - 1),) if shape else ()))
    return results


def _units(analysis: Analysis, op: Op, gates: int) -> Axis | None:
    """The hidden units, united over all tensors that hold them; None where one cannot be cut."""
    parts = [("weight", 1, gates), ("recurrence", 1, gates), ("recurrence", 2, 1)]
    parts += [("bias", 1, 2 * gates), ("peephole", 1, 3), ("state", -1, 1), ("cell", -1, 1)]
    found: list[Axis] = []
    starts_at_zero = True
    for name, dim, times in parts:
        value = op.optional(name)
        if value is None:
            continue
        axis = _axis(analysis, value, dim, times)
        if axis is None:
            return None
        found.append(axis)
        if name in ("state", "cell"):
            starts_at_zero = starts_at_zero and bool(axis.zero.all())
            _freeze_others(analysis, op, value, {value.rank - 1})
    for axis in found[1:]:
        analysis.unite(found[0].labels, axis.labels)
    rows = [axis.zero for axis, (name, dim, _) in zip(found, _present(op, parts), strict=True) if dim == 1]
    zero = np.logical_and.reduce(rows) & _keeps_zero(op, gates) & starts_at_zero
    return Axis(found[0].labels, zero)


def _present(op: Op, parts: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [part for part in parts if op.optional(part[0]) is not None]


def _axis(analysis: Analysis, value: Value, dim: int, times: int) -> Any:
    """The units along a dimension that repeats them `times`: united over the repeats, zero where all are."""
    axis = analysis.axis(value, dim)
    if axis is None:
        return None
    rows = axis.labels.reshape(times, -1)
    analysis.unite(rows, rows[:1])
    return Axis(rows[0], axis.zero.reshape(times, -1).all(axis=0))


def _freeze_others(analysis: Analysis, op: Op, value: Value, dims: set[int]) -> None:
    for facet in value.facets:
        if not set(facet.dims) <= dims:
            analysis.freeze_value(value.with_facets((facet,)), op, "mixes steps or samples")


def _keeps_zero(op: Op, gates: int) -> bool:
    names = [_text(name).lower() for name in op.attrs.get("activations") or []]
    if not names:
        return True
    each = len(names) // max(1, op.value("weight").shape[0])
    return all(
        names[start + at] in _ZERO_AT_ZERO for start in range(0, len(names), max(each, 1)) for at in _CANDIDATE[gates]
    )


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _count(analysis: Analysis, op: Op, weight: Value, unit: Axis, x: Axis | None) -> None:
    source = op.value("input").shape
    steps = source[0] * source[1] * weight.shape[0] * op.attrs["gates"]
    inputs = [unit.labels] if x is None else [unit.labels, x.labels]
    analysis.cost(op, float(steps * (weight.shape[2] if x is None else 1)), inputs)
    analysis.cost(op, float(steps), [unit.labels, unit.labels])


def resize_recurrent(op: Op, cut: Cut) -> dict[str, Any]:
    """`hidden_size` counts the units."""
    kept = cut.kept("recurrence", 2)
    return {} if kept is None else {"hidden_size": int(kept.sum())}


def _binding(gates: int, *more: str) -> Binding:
    inputs = ("input", "weight", "recurrence", "bias", "lengths", "state", *more)
    return Binding(inputs=inputs, fixed={"gates": gates}, read=_read)


def _read(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: attrs[key] for key in ("gates", "activations") if key in attrs}


RULES = (
    Rule(
        "recurrent layer",
        recurrent,
        resize_recurrent,
        onnx={"RNN": _binding(1), "GRU": _binding(3), "LSTM": _binding(4, "cell", "peephole")},
    ),
)

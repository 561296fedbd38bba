"""Recurrent layers: LSTM, GRU and plain RNN, stacked, in both directions, with projections.

    gates = W x(t) + R h(t-1) + b,   one block of H rows for every gate (LSTM 4, GRU 3, RNN 1)

A hidden unit is one row of every block, its biases and its column of R and of the next layer's W. A unit whose
rows and biases are zero stays at zero from a zero state: tanh(0) = 0 is all that an LSTM or a plain RNN ever
adds to it, and a GRU only scales what was there. So units go exactly. One operator has one hidden size: layers
and directions lose the same units.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Axis, Binding, Cut, Op, Rule
from graphprune.passes.channels.labels import Labels, Mask
from graphprune.passes.channels.rules.indexing import freeze_along
from graphprune.passes.channels.rules.linear import contract_pair
from graphprune.passes.channels.value import Value


def _blocks(analysis: Analysis, op: Op, value: Value | None, dim: int, units: Labels) -> Mask:
    """Unite every block of rows with the units; where all rows of a unit are zero."""
    if value is None:
        return np.ones(len(units), dtype=np.bool_)
    axis = analysis.axis(value, dim)
    if axis is None:
        analysis.freeze(units, op, "its weights cannot be cut")
        return np.zeros(len(units), dtype=np.bool_)
    analysis.unite(axis.labels.reshape(-1, len(units)), units[None])
    return np.asarray(axis.zero.reshape(-1, len(units)).all(axis=0))


def _columns(analysis: Analysis, op: Op, value: Value, dim: int, read: Axis) -> None:
    """The weights' columns sum over the channels that are read, which may stand several times side by side."""
    axis = analysis.axis(value, dim)
    if axis is None:
        analysis.freeze(read.labels, op, "its weights cannot be cut")
        return
    analysis.unite(axis.labels, read.labels)
    analysis.contract(axis.labels, axis.zero | read.zero, op)


def _input(analysis: Analysis, op: Op, x: Value, weight: Value, dim: int) -> Axis | None:
    """The first layer's columns and the input's channels go together, or neither."""
    read, columns = analysis.axis(x, -1), analysis.axis(weight, dim)
    if read is None and columns is not None:
        analysis.space.freeze(columns.labels, None)
        return None
    contract_pair(analysis, op, read, columns)
    return read


def _state(analysis: Analysis, op: Op, state: Value | None, units: Labels) -> Mask | bool:
    """An initial state joins the units; where it is zero."""
    if state is None:
        return True
    freeze_along(analysis, op, state, range(state.rank - 1), "is an initial state")
    axis = analysis.axis(state, -1)
    if axis is None:
        analysis.freeze(units, op, "its initial state cannot be cut")
        return False
    analysis.unite(axis.labels, units)
    return axis.zero


def _cost(analysis: Analysis, op: Op, gates: int, units: Labels, read: Axis | None, size: int, back: Labels) -> None:
    steps = float(np.prod(op.value("input").shape[:-1], dtype=np.int64) * gates)
    analysis.cost(op, steps * (1 if read is not None else size), [units] if read is None else [units, read.labels])
    analysis.cost(op, steps, [units, back])


def recurrent(analysis: Analysis, op: Op) -> list[Value]:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu` on padded input (..., T, in); weights as in `torch.nn.RNNBase`.

    Parameters of each layer and direction, in order: W (gates*H, in), R (gates*H, H or P), biases (gates*H) twice
    where there are any, and for projections (P, H).
    """
    x, parameters = op.value("input"), op.inputs["params"]
    gates, layers = op.attrs["gates"], op.attrs["num_layers"]
    directions = 2 if op.attrs["bidirectional"] else 1
    each = len(parameters) // (layers * directions)
    biases = 2 if op.attrs["has_biases"] else 0
    units = analysis.space.fresh(parameters[0].shape[0] // gates)
    back = units
    if each == 3 + biases:
        back = analysis.space.fresh(parameters[1].shape[1])
        analysis.freeze(units, op, "must stay more units than projections")  # that is how torch tells the two apart
    states = op.inputs["hx"] if isinstance(op.inputs["hx"], list) else [op.inputs["hx"]]
    at_rest = _state(analysis, op, states[0], back)
    cell_at_rest = _state(analysis, op, states[1], units) if len(states) > 1 else True
    freeze_along(analysis, op, x, range(x.rank - 1), "is read step by step")
    read: Axis | None = None
    zeros: list[Mask] = []
    for layer in range(layers):
        before, zeros = zeros, []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            w, r, *rest = parameters[start : start + each]
            if layer == 0:
                read = _input(analysis, op, x, w, 1)
            else:
                read = Axis(np.tile(back, directions), np.concatenate(before))
                _columns(analysis, op, w, 1, read)
            zero = np.logical_and.reduce([_blocks(analysis, op, value, 0, units) for value in (w, r, *rest[:biases])])
            zero = zero & cell_at_rest & (at_rest if back is units else True)
            if back is not units:
                _columns(analysis, op, rest[biases], 1, Axis(units, zero))
                zero = _blocks(analysis, op, rest[biases], 0, back) & at_rest
            _columns(analysis, op, r, 1, Axis(back, zero))
            _cost(analysis, op, gates, units, read, w.shape[1], back)
            zeros.append(zero)
    return _results(op, back, units, zeros)


def _results(op: Op, back: Labels, units: Labels, zeros: Sequence[Mask]) -> list[Value]:
    """The sequence of all directions side by side, the last output and the last cell."""
    rank = len(op.shape)
    sequence = Axis(np.tile(back, len(zeros)), np.concatenate(zeros)).facet(rank, rank - 1)
    never = np.zeros(len(back), dtype=np.bool_)
    last = [Axis(labels, np.resize(never, len(labels))) for labels in (back, units)]
    ends = [
        Value(shape, (axis.facet(len(shape), len(shape) - 1),))
        for shape, axis in zip(op.out_shapes[1:], last, strict=False)
    ]
    return [Value(op.shape, (sequence,)), *ends]


#: Activations f of ONNX's recurrent layers with f(0) = 0 for all of their parameters.
_ZERO_AT_ZERO = {"tanh", "relu", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"}


def _rests_at_zero(op: Op) -> bool:
    """Do the activations other than the gates' own keep a unit at zero? The first of LSTM's and GRU's is the gates'."""
    names = [str(name).lower() for name in op.attrs.get("activations") or ()]
    period = {4: 3, 3: 2, 1: 1}[op.attrs["gates"]]
    return all(name in _ZERO_AT_ZERO for n, name in enumerate(names) if period == 1 or n % period)


def onnx_recurrent(analysis: Analysis, op: Op) -> list[Value]:
    """ONNX LSTM, GRU, RNN: W (D, gates*H, in), R (D, gates*H, H), B (D, 2*gates*H); X (..., in), Y (T, D, N, H)."""
    x, w, r = op.value("input"), op.value("weight"), op.value("recurrence")
    gates = op.attrs["gates"]
    units = analysis.space.fresh(r.shape[2])
    freeze_along(analysis, op, x, range(x.rank - 1), "is read step by step")
    lengths = op.optional("sequence_lens")
    if lengths is not None:
        analysis.freeze_value(lengths, op, "are lengths of sequences")
    at_rest = [_state(analysis, op, op.optional(name), units) for name in ("initial_h", "initial_c")]
    parts = [(w, 1), (r, 1), (op.optional("bias"), 1), (op.optional("peepholes"), 1)]
    zero = np.logical_and.reduce([_blocks(analysis, op, value, dim, units) for value, dim in parts])
    zero = zero & at_rest[0] & at_rest[1] & _rests_at_zero(op)
    read = _input(analysis, op, x, w, 2)
    _columns(analysis, op, r, 2, Axis(units, zero))
    _cost(analysis, op, gates * w.shape[0], units, read, w.shape[2], units)
    results = []
    for number, shape in enumerate(op.out_shapes):
        known = zero if number == 0 else np.zeros_like(zero)
        results.append(Value(shape, (Axis(units, known).facet(len(shape), len(shape) - 1),) if shape else ()))
    return results


def resize_onnx_recurrent(op: Op, cut: Cut) -> dict[str, Any]:
    """`hidden_size` mirrors the weights."""
    kept = cut.kept("recurrence", 2)
    return {} if kept is None else {"hidden_size": int(kept.sum())}


def _padded(attrs: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attrs[name] for name in ("gates", "num_layers", "bidirectional", "has_biases")}


_ONNX_INPUTS = ("input", "weight", "recurrence", "bias", "sequence_lens", "initial_h", "initial_c", "peepholes")
_ATEN_GATES = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}

RULES = (
    Rule(
        "recurrent layer",
        recurrent,
        aten={name: Binding(fixed={"gates": gates}, read=_padded) for name, gates in _ATEN_GATES.items()},
    ),
    Rule(
        "recurrent layer, packed weights",
        onnx_recurrent,
        resize_onnx_recurrent,
        onnx={
            name: Binding(inputs=_ONNX_INPUTS, fixed={"gates": gates})
            for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
        },
    ),
)

"""LSTM, GRU and simple recurrent layers over whole sequences."""

import torch
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result

__all__ = ["OPERATORS"]

#: Gates in torch's order, by their place in ONNX's.
_LSTM = (0, 2, 3, 1)  # ONNX: input, output, forget, cell; torch: input, forget, cell, output
_GRU = (1, 0, 2)  # ONNX: update, reset, hidden; torch: reset, update, hidden


def _gates(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    if order == tuple(range(len(order))):
        return weight
    parts = weight.chunk(len(order), 0)
    return torch.cat([parts[at] for at in order], 0)


def _weights(call: Call, order: tuple[int, ...], directions: int) -> list[Tensor]:
    found = []
    for direction in range(directions):
        found += [_gates(call.tensor(1)[direction], order), _gates(call.tensor(2)[direction], order)]
        if call.has(3):
            first, second = call.tensor(3)[direction].chunk(2, 0)
            found += [_gates(first, order), _gates(second, order)]
    return found


def _check(call: Call, activations: list[str]) -> tuple[int, bool]:
    direction = call.attr("direction", "forward")
    given = call.attr("activations")
    if given is not None and [name.lower() for name in given] != [a.lower() for a in activations] * (
        2 if direction == "bidirectional" else 1
    ):
        raise call.refuse(f"its activations are {', '.join(given)}")
    if call.attr("clip") is not None or call.has(7) or call.attr("input_forget", 0):
        raise call.refuse("clipped or coupled gates, or peepholes")
    if call.has(4):
        raise call.refuse("sequences of their own lengths")
    return (2 if direction == "bidirectional" else 1), direction == "reverse"


def _run(call: Call, kind: str) -> Result:
    order = {"LSTM": _LSTM, "GRU": _GRU, "RNN": (0,)}[kind]
    activations = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[kind]
    directions, is_reverse = _check(call, activations)
    if kind == "GRU" and not call.attr("linear_before_reset", 0):
        raise call.refuse(
            "its reset comes before the product, which torch's GRU does not know: write it with linear_before_reset=1, "
            "as torch and Keras do, and train that; as it is it can be slimmed"
        )
    x, hidden = call.tensor(0), call.attr("hidden_size")
    batch_first = bool(call.attr("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
    x = x.flip(0) if is_reverse else x
    batch = x.shape[1]
    state = call.optional(5)
    state = (
        x.new_zeros((directions, batch, hidden)) if state is None else state.transpose(0, 1) if batch_first else state
    )
    weights, has_bias = _weights(call, order, directions), call.has(3)
    if kind == "LSTM":
        cell = call.optional(6)
        cell = torch.zeros_like(state) if cell is None else cell.transpose(0, 1) if batch_first else cell
        y, h, c = torch.lstm(x, [state, cell], weights, has_bias, 1, 0.0, False, directions == 2, False)
    else:
        function = torch.gru if kind == "GRU" else torch.rnn_tanh
        y, h = function(x, state, weights, has_bias, 1, 0.0, False, directions == 2, False)
        c = None
    y = y.flip(0) if is_reverse else y
    length = y.shape[0]
    y = y.reshape(length, batch, directions, hidden).transpose(1, 2)  # (steps, directions, batch, hidden)
    if batch_first:
        y, h = y.permute(2, 0, 1, 3), h.transpose(0, 1)
        c = None if c is None else c.transpose(0, 1)
    return [y, h] if c is None else [y, h, c]


OPERATORS: dict[str, Operator] = {
    "LSTM": lambda call: _run(call, "LSTM"),
    "GRU": lambda call: _run(call, "GRU"),
    "RNN": lambda call: _run(call, "RNN"),
}

import numpy as np
import pytest


def lstm(sketch, x, units: int = 3, state=None, name: str = "l", gates: int = 4, kind: str = "lstm.input"):
    """One layer of one direction on (batch, steps, inputs)."""
    weights = [
        sketch.parameter(f"{name}.{part}", gates * units, *columns)
        for part, columns in (("w", (x.shape[-1],)), ("r", (units,)), ("bw", ()), ("br", ()))
    ]
    batch, steps, _ = x.shape
    if state is None:
        state = sketch.call("zeros", (1, batch, units), shape=[1, batch, units])
    end = (1, batch, units)
    shapes = ((batch, steps, units), end, end)[: 3 if gates == 4 else 2]
    return sketch.call(
        kind,
        *shapes,
        input=x,
        hx=[state, state] if gates == 4 else state,
        params=weights,
        has_biases=True,
        num_layers=1,
        bidirectional=False,
        batch_first=True,
    )


def stem(sketch, channels: int = 2):
    return sketch.linear(sketch.input(2, 5, 4), "stem", channels)


@pytest.mark.parametrize(("kind", "gates"), [("lstm.input", 4), ("gru.input", 3), ("rnn_tanh.input", 1)])
def test_a_unit_is_a_row_of_every_gate(sketch, groups_of, kind, gates):
    y = lstm(sketch, stem(sketch), gates=gates, kind=kind)[0]
    graph = sketch.graph(sketch.linear(y, "head", 2))
    rows = [f"[{','.join(str(g * 3 + unit) for g in range(gates))}]" for unit in range(3)]
    assert groups_of(graph)[0] == "stem.weight/0[0] stem.bias/0[0] l.w/1[0]"
    assert groups_of(graph)[2:] == [
        f"l.w/0{rows[i]} l.r/0{rows[i]} l.r/1[{i}] l.bw/0{rows[i]} l.br/0{rows[i]} head.weight/1[{i}]" for i in range(3)
    ]
    assert graph.exact.all()


def test_a_state_from_outside_cannot_be_cut(sketch):
    y = lstm(sketch, stem(sketch), state=sketch.input(1, 2, 3))[0]
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert {s.name for s in graph.sets} == {"stem"}
    assert any("its initial state cannot be cut" in frozen.reason for frozen in graph.frozen)


def test_steps_are_read_one_after_another(sketch):
    """Channels along the time axis cannot go."""
    x = sketch.call("transpose", (2, 5, 4), input=sketch.linear(sketch.input(2, 4, 3), "stem", 5), dim0=1, dim1=2)
    y = lstm(sketch, x)[0]
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert "stem" not in {s.name for s in graph.sets}
    assert any("is read step by step" in frozen.reason for frozen in graph.frozen)


def onnx_lstm(sketch, x, data=None, **attributes):
    """X (steps, batch, inputs), both directions, 3 units."""
    w = sketch.parameter("w", 2, 12, x.shape[-1], data=data and data["w"])
    r = sketch.parameter("r", 2, 12, 3, data=data and data["r"])
    b = sketch.parameter("b", 2, 24, data=data and data["b"])
    return sketch.onnx("LSTM", (5, 2, 2, 3), input=x, weight=w, recurrence=r, bias=b, hidden_size=3, **attributes)


def test_onnx_directions_share_their_units(sketch, groups_of):
    y = onnx_lstm(sketch, stem(sketch))
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert groups_of(graph)[2] == "w/1[0,3,6,9] r/1[0,3,6,9] r/2[0] b/1[0,3,6,9,12,15,18,21] head.weight/1[0]"
    assert graph.exact.all()
    assert sketch.resized(graph, 1, [3, 4]) == {"hidden_size": 1}


@pytest.mark.parametrize(
    ("activations", "exact"),
    [(["Sigmoid", "Tanh", "Tanh"] * 2, True), (["Sigmoid", "Sigmoid", "Tanh"] * 2, False), (["HardSigmoid"], True)],
)
def test_onnx_activations_must_keep_zero(sketch, activations, exact):
    """A unit that does not stay at zero is summed by the layer's own recurrence: still exact by its columns' zeros.

    Dead units are another matter: found only where zero stays zero.
    """
    rng = np.random.default_rng(0)
    data = {"w": rng.normal(size=(2, 12, 2)), "r": rng.normal(size=(2, 12, 3)), "b": rng.normal(size=(2, 24))}
    for name in data:
        data[name][:, 1::3] = 0
    y = onnx_lstm(sketch, stem(sketch), data, activations=activations)
    weight = sketch.parameter("head", 3, 2, data=rng.normal(size=(3, 2)))
    y = sketch.onnx("MatMul", (5, 2, 2, 2), input=y, other=weight)
    graph = sketch.graph(y)
    units = next(s for s in graph.sets if len(s.groups) == 3)
    assert graph.exact[units.groups].tolist() == [False, exact, False]

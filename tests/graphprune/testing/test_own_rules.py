"""Our own rules under the suite that others try theirs out with: at least one of each family."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from small import Net, each, image, onnx_of
from torch import nn

from graphprune.passes.channels.rules import FAMILIES
from graphprune.testing import Example, check_rule

X = image(2, 3, 4, 4)
ROWS = image(2, 5, 3)


def first_and_last(width=4, last=None, **parts):
    return {"first": nn.Conv2d(3, width, 1), **parts, "last": nn.Conv2d(last or width, 2, 1)}


def convolution():
    """Two groups of three: more channels in a group than groups."""
    parts = first_and_last(6, few=nn.Conv2d(6, 6, 3, padding=1, groups=2))
    net = Net(lambda net, x: net.last(net.few(torch.relu(net.first(x)))), **parts)
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("Relu", "a", "b", {}),
        ("Conv", "b few.weight few.bias", "c", {"group": 2, "pads": [1, 1, 1, 1]}),
        ("Conv", "c last.weight last.bias", "out", {}),
    ]
    pairs = [f"[{i},{i + 3}]" for i in range(3)]
    groups = [f"first.weight/0{p} first.bias/0{p} few.weight/1[{i}]" for i, p in enumerate(pairs)]
    groups += [f"few.weight/0{p} few.bias/0{p} last.weight/1{p}" for p in pairs]
    return "convolution", net, X, nodes, groups


def matrix_product():
    net = Net(lambda net, x: torch.tanh(x @ net.a) @ net.b, a=torch.zeros(3, 4), b=torch.zeros(4, 2))
    nodes = [("MatMul", "x a", "y", {}), ("Tanh", "y", "z", {}), ("MatMul", "z b", "out", {})]
    return "matrix product", net, ROWS, nodes, each(4, "a/1", "b/0")


def einsum():
    def forward(net, x):
        return torch.einsum("ntk,kd->ntd", torch.einsum("ntc,ck->ntk", x, net.a), net.b)

    net = Net(forward, a=torch.zeros(3, 4), b=torch.zeros(4, 2))
    nodes = [
        ("Einsum", "x a", "y", {"equation": "ntc,ck->ntk"}),
        ("Einsum", "y b", "out", {"equation": "ntk,kd->ntd"}),
    ]
    return "einsum", net, ROWS, nodes, each(4, "a/1", "b/0")


def batch_norm():
    net = Net(lambda net, x: net.last(net.norm(net.first(x))), **first_and_last(norm=nn.BatchNorm2d(4)))
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("BatchNormalization", "a norm.weight norm.bias norm.running_mean norm.running_var", "b", {"epsilon": 1e-5}),
        ("Conv", "b last.weight last.bias", "out", {}),
    ]
    names = ("first.weight/0", "first.bias/0", "last.weight/1")
    norm = (f"norm.{name}/0" for name in ("weight", "bias", "running_mean", "running_var"))
    return "batch norm", net, X, nodes, each(4, *names, *norm)


def gate():
    net = Net(
        lambda net, x: net.last(net.first(x) * torch.sigmoid(net.gate(x))), **first_and_last(gate=nn.Conv2d(3, 4, 1))
    )
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("Conv", "x gate.weight gate.bias", "b", {}),
        ("Sigmoid", "b", "c", {}),
        ("Mul", "a c", "d", {}),
        ("Conv", "d last.weight last.bias", "out", {}),
    ]
    groups = each(4, "first.weight/0", "first.bias/0", "gate.weight/0", "gate.bias/0", "last.weight/1")
    return "product", net, X, nodes, groups


def mean():
    net = Net(lambda net, x: net.last(net.first(x).mean((2, 3), keepdim=True)), **first_and_last())
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("ReduceMean", "a axes", "b", {}),
        ("Conv", "b last.weight last.bias", "out", {}),
    ]
    return "mean or extremum", net, X, nodes, each(4, "first.weight/0", "first.bias/0", "last.weight/1")


def reshape():
    """Channel shuffle: laid out as two by two, only whole rows may go."""

    def forward(net, x):
        y = net.first(x).reshape(-1, 2, 2, 4, 4).transpose(1, 2).reshape(-1, 4, 4, 4)
        return net.last(y)

    net = Net(forward, **first_and_last())
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("Reshape", "a apart", "b", {}),
        ("Transpose", "b", "c", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "c back", "d", {}),
        ("Conv", "d last.weight last.bias", "out", {}),
    ]
    shuffled = ["first.weight/0[0,1] first.bias/0[0,1] last.weight/1[0,2]"]
    shuffled += ["first.weight/0[2,3] first.bias/0[2,3] last.weight/1[1,3]"]
    return "reshape", net, X, nodes, shuffled


def concatenation():
    net = Net(
        lambda net, x: net.last(torch.cat([net.first(x), net.other(x)], 1)),
        **first_and_last(last=7, other=nn.Conv2d(3, 3, 1)),
    )
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("Conv", "x other.weight other.bias", "b", {}),
        ("Concat", "a b", "c", {"axis": 1}),
        ("Conv", "c last.weight last.bias", "out", {}),
    ]
    groups = each(4, "first.weight/0", "first.bias/0", "last.weight/1")
    groups += [f"other.weight/0[{i}] other.bias/0[{i}] last.weight/1[{i + 4}]" for i in range(3)]
    return "concatenation", net, X, nodes, groups


def padding():
    """Of positions; the channels pass."""
    net = Net(lambda net, x: net.last(F.pad(net.first(x), (1, 1, 0, 2))), **first_and_last())
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("Pad", "a pads", "b", {}),
        ("Conv", "b last.weight last.bias", "out", {}),
    ]
    return "padding", net, X, nodes, each(4, "first.weight/0", "first.bias/0", "last.weight/1")


def cumulative():
    """A sum that runs along the rows."""
    net = Net(lambda net, x: net.last(net.first(x).cumsum(2)), **first_and_last())
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("CumSum", "a axis", "b", {}),
        ("Conv", "b last.weight last.bias", "out", {}),
    ]
    groups = each(4, "first.weight/0", "first.bias/0", "last.weight/1")
    return "sorting or accumulation", net, X, nodes, groups


def filling():
    """A constant of all sizes that follows the channels it is joined to."""
    net = Net(lambda net, x: net.last(net.first(x) + x.new_full((4, 4, 4), 0.5)), **first_and_last())
    nodes = [
        ("Conv", "x first.weight first.bias", "a", {}),
        ("ConstantOfShape", "cube", "half", {"value": half()}),
        ("Add", "a half", "b", {}),
        ("Conv", "b last.weight last.bias", "out", {}),
    ]
    return "filling", net, X, nodes, each(4, "first.weight/0", "first.bias/0", "last.weight/1")


def half():
    import onnx

    return onnx.numpy_helper.from_array(np.full(1, 0.5, np.float32))


LITERALS = {
    "axes": np.array([2, 3]),
    "axis": np.array(2),
    "apart": np.array([-1, 2, 2, 4, 4]),
    "back": np.array([-1, 4, 4, 4]),
    "pads": np.array([0, 0, 0, 1, 0, 0, 2, 1]),
    "cube": np.array([4, 4, 4]),
}


PAIRS = {
    "conv": convolution,
    "linear": matrix_product,
    "einsum": einsum,
    "norm": batch_norm,
    "elementwise": gate,
    "reduce": mean,
    "reshape": reshape,
    "select": concatenation,
    "pad": padding,
    "indexing": cumulative,
    "lookup": filling,
}


@pytest.mark.parametrize("family", PAIRS)
def test_a_rule_of_the_family_in_torch_and_in_onnx(family):
    rule, net, inputs, nodes, groups = PAIRS[family]()
    example = Example(net, inputs, onnx_of(net, inputs, *nodes, **LITERALS), groups=groups)
    compared = dict(check_rule(rule, example).compared)
    if family == "lookup":  # made from nothing: there is no input whose channels could stay
        assert compared.pop("a refusal has a reason") == 0
    assert all(compared.values()), compared
    assert rule in {rule.name for rule in next(f for f in FAMILIES if f.__name__.endswith(f".{family}")).RULES}


def rows(name, *picks):
    """A weight and its bias, cut along the outputs."""
    return [f"{name}.{part}/0[{','.join(map(str, pick))}]" for pick in picks for part in ("weight", "bias")]


def attention_groups():
    """Two heads of four channels in queries and keys, of six in values."""
    pairs = [(i, i + 4) for i in range(4)]
    groups = [" ".join(rows("query", pair) + rows("key", pair)) for pair in pairs]
    return groups + [" ".join([*rows("value", (i, i + 6)), f"out.weight/1[{i},{i + 6}]"]) for i in range(6)]


def recurrent_groups():
    """A GRU whose units start from a linear layer's, and a plain layer after it: each unit with all of its gates."""

    def gates(unit):
        return f"[{unit},{unit + 6},{unit + 12}]"

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    groups = [
        f"start.weight/0[{i}] start.bias/0[{i}] gru.weight_hh_l0/1[{i}] rnn.weight_ih_l0/1[{i}] "
        + " ".join(f"gru.{name}/0{gates(i)}" for name in names)
        for i in range(6)
    ]
    return groups + each(7, "rnn.weight_ih_l0/0", "rnn.weight_hh_l0/0", "rnn.weight_hh_l0/1", "head.weight/1")


ZOO = {
    "attention": ("attention", "AttentionSeparate", attention_groups),
    "recurrent": ("recurrent layer", "RecurrentState", recurrent_groups),
}


@pytest.mark.parametrize("family", ZOO)
def test_a_rule_of_the_family_on_a_network_of_the_zoo(family):
    rule, name, groups = ZOO[family]
    net = zoo.build(name)
    compared = check_rule(rule, Example(net, net.example_inputs(), groups=groups())).compared
    assert compared["cut equals mask"]


def test_quantized_weights_and_values():
    """Stored as bytes with a scale each; the value between them has a zero point that is not 0."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.integers(-100, 100, (4, 3, 1, 1)).astype(np.int8),
        "first.scale": (0.5 + rng.random(4)).astype(np.float32) / 100,
        "last": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "scale": np.float32(0.05),
        "point": np.uint8(7),
    }
    nodes = [
        ("DequantizeLinear", "first first.scale", "w", {"axis": 0}),
        ("Conv", "x w", "a", {}),
        ("Relu", "a", "b", {}),
        ("QuantizeLinear", "b scale point", "q", {}),
        ("DequantizeLinear", "q scale point", "c", {}),
        ("Conv", "c last", "out", {}),
    ]
    feeds = {"x": X[0].numpy()}
    groups = each(4, "first/0", "first.scale/0", "last/1")
    for rule in ("quantization", "dequantization"):
        example = Example(onnx=onnx_of(weights, X, *nodes), feeds=feeds, groups=groups)
        assert check_rule(rule, example).compared["cut equals mask"]


def test_what_onnxruntime_writes_when_it_optimizes():
    """A convolution with its activation in one, and an activation on bytes between two scales."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "last": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "scale": np.float32(0.02),
        "point": np.uint8(128),
    }
    nodes = [
        ("com.microsoft::FusedConv", "x first", "a", {"activation": "Relu", "kernel_shape": [1, 1]}),
        ("QuantizeLinear", "a scale point", "q", {}),
        ("com.microsoft::QLinearLeakyRelu", "q scale point scale point", "r", {"alpha": 0.1}),
        ("DequantizeLinear", "r scale point", "b", {}),
        ("Conv", "b last", "out", {}),
    ]
    groups = each(4, "first/0", "last/1")
    for rule in ("convolution with sum and activation", "activation, zero at zero, on integers"):
        example = Example(onnx=onnx_of(weights, X, *nodes), feeds={"x": X[0].numpy()}, groups=groups)
        assert check_rule(rule, example).compared["cut equals mask"]


def test_every_family_has_been_tried_out():
    assert {*PAIRS, *ZOO, "quantize", "fused", "integers"} == {
        family.__name__.rpartition(".")[2] for family in FAMILIES
    }

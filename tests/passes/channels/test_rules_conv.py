import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from graphprune.passes.fx.analyze import trace
from graphprune.passes.fx.slim import mask, slim


def conv_pair(sketch, groups: int, width: int, out: int, transposed: bool = False):
    x = sketch.relu(sketch.conv(sketch.input(1, 3, 4, 4), "stem", width))
    shape = (width, out // groups, 1, 1) if transposed else (out, width // groups, 1, 1)
    weight, bias = sketch.parameter("c.weight", *shape), sketch.parameter("c.bias", out)
    kind = "conv_transpose2d.input" if transposed else "conv2d"
    y = sketch.call(kind, (1, out, 4, 4), input=x, weight=weight, bias=bias, groups=groups)
    return sketch.graph(sketch.conv(y, "head", 2))


def test_dense(sketch, groups_of):
    graph = conv_pair(sketch, groups=1, width=2, out=2)
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] c.weight/1[0]",
        "stem.weight/0[1] stem.bias/0[1] c.weight/1[1]",
        "c.weight/0[0] c.bias/0[0] head.weight/1[0]",
        "c.weight/0[1] c.bias/0[1] head.weight/1[1]",
    ]
    assert graph.exact.all()
    assert [f.reason for f in graph.frozen] == ["is an output: the output of the model"]


def test_depthwise_is_groups_and_not_one_output(sketch, groups_of):
    graph = conv_pair(sketch, groups=2, width=2, out=2)
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] c.weight/0[0] c.bias/0[0] head.weight/1[0]",
        "stem.weight/0[1] stem.bias/0[1] c.weight/0[1] c.bias/0[1] head.weight/1[1]",
    ]


def test_one_output_channel_is_no_depthwise_convolution(sketch, groups_of):
    x = sketch.relu(sketch.conv(sketch.input(1, 3, 4, 4), "stem", 2))
    graph = sketch.graph(sketch.conv(x, "one", 1))
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] one.weight/1[0]",
        "stem.weight/0[1] stem.bias/0[1] one.weight/1[1]",
    ]


def test_depthwise_with_a_multiplier(sketch, groups_of):
    graph = conv_pair(sketch, groups=2, width=2, out=4)
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] c.weight/0[0,1] c.bias/0[0,1] head.weight/1[0,1]",
        "stem.weight/0[1] stem.bias/0[1] c.weight/0[2,3] c.bias/0[2,3] head.weight/1[2,3]",
    ]


def test_few_groups_lose_the_same_position_everywhere(sketch, groups_of):
    """Two groups of three: more channels in a group than groups."""
    graph = conv_pair(sketch, groups=2, width=6, out=6)
    assert groups_of(graph) == [
        "stem.weight/0[0,3] stem.bias/0[0,3] c.weight/1[0]",
        "stem.weight/0[1,4] stem.bias/0[1,4] c.weight/1[1]",
        "stem.weight/0[2,5] stem.bias/0[2,5] c.weight/1[2]",
        "c.weight/0[0,3] c.bias/0[0,3] head.weight/1[0,3]",
        "c.weight/0[1,4] c.bias/0[1,4] head.weight/1[1,4]",
        "c.weight/0[2,5] c.bias/0[2,5] head.weight/1[2,5]",
    ]


def test_many_groups_go_as_a_whole(sketch, groups_of):
    """Three groups of two in and one out: more groups than channels in one."""
    graph = conv_pair(sketch, groups=3, width=6, out=3)
    assert groups_of(graph) == [
        "stem.weight/0[0,1] stem.bias/0[0,1] c.weight/0[0] c.bias/0[0] head.weight/1[0]",
        "stem.weight/0[2,3] stem.bias/0[2,3] c.weight/0[1] c.bias/0[1] head.weight/1[1]",
        "stem.weight/0[4,5] stem.bias/0[4,5] c.weight/0[2] c.bias/0[2] head.weight/1[2]",
    ]


def test_transposed_dense(sketch, groups_of):
    graph = conv_pair(sketch, groups=1, width=2, out=3, transposed=True)
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] c.weight/0[0]",
        "stem.weight/0[1] stem.bias/0[1] c.weight/0[1]",
        "c.weight/1[0] c.bias/0[0] head.weight/1[0]",
        "c.weight/1[1] c.bias/0[1] head.weight/1[1]",
        "c.weight/1[2] c.bias/0[2] head.weight/1[2]",
    ]


def test_transposed_with_few_groups(sketch, groups_of):
    graph = conv_pair(sketch, groups=2, width=6, out=4, transposed=True)
    assert groups_of(graph) == [
        "stem.weight/0[0,3] stem.bias/0[0,3] c.weight/0[0,3]",
        "stem.weight/0[1,4] stem.bias/0[1,4] c.weight/0[1,4]",
        "stem.weight/0[2,5] stem.bias/0[2,5] c.weight/0[2,5]",
        "c.weight/1[0] c.bias/0[0,2] head.weight/1[0,2]",
        "c.weight/1[1] c.bias/0[1,3] head.weight/1[1,3]",
    ]


def test_transposed_with_many_groups(sketch, groups_of):
    graph = conv_pair(sketch, groups=2, width=2, out=4, transposed=True)
    assert groups_of(graph) == [
        "stem.weight/0[0] stem.bias/0[0] c.weight/0[0] c.bias/0[0,1] head.weight/1[0,1]",
        "stem.weight/0[1] stem.bias/0[1] c.weight/0[1] c.bias/0[2,3] head.weight/1[2,3]",
    ]


def test_grouped_convolution_of_the_input_is_frozen_with_its_reason(sketch):
    y = sketch.conv(sketch.input(1, 4, 4, 4), "c", 4, groups=4)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 0
    reasons = [f.reason for f in graph.frozen]
    assert "every group reads channels that cannot be cut: conv2d at line 0" in reasons


@pytest.mark.parametrize(
    ("kernel", "stride", "out", "free"),
    [(1, 1, 5, 5), (3, 1, 3, 0), (1, 2, 3, 0)],
)
def test_channels_along_positions_pass_a_kernel_of_one(sketch, kernel, stride, out, free):
    """(N, tokens, channels) through a convolution over tokens: with a kernel of 1, it is a linear layer."""
    x = sketch.linear(sketch.input(1, 4, 3), "channels", 5)
    weight, bias = sketch.parameter("tokens.weight", 6, 4, kernel), sketch.parameter("tokens.bias", 6)
    y = sketch.call("conv1d", (1, 6, out), input=x, weight=weight, bias=bias, groups=1, stride=[stride])
    graph = sketch.graph(sketch.call("amax", (1, 6), input=y, dim=[2]))
    assert graph.n_groups == free
    if free:
        assert graph.cost.macs(np.arange(5) > 0) == 4 * (4 * 3 + 6 * 4)
    else:
        assert any(f.reason.startswith("mixes positions") for f in graph.frozen)


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_that_are_computed_from_nothing_cannot_be_cut(sketch, groups):
    """A fixed filter written in forward: the channels that it reads stay."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 8)
    weight = sketch.call("rand", (6, 8 // groups, 1, 1))
    y = sketch.call("conv2d", (1, 6, 4, 4), input=x, weight=weight, groups=groups)
    graph = sketch.graph(y)
    assert graph.n_groups == 0
    assert "its weight cannot be cut: conv2d at line 2" in [f.reason for f in graph.frozen]


def test_a_bias_that_cannot_be_cut(sketch):
    x, weight = sketch.input(1, 3, 4, 4), sketch.parameter("w", 6, 3, 1, 1)
    y = sketch.call("conv2d", (1, 6, 4, 4), input=x, weight=weight, bias=sketch.call("arange", (6,)), groups=1)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 0
    assert "its bias cannot be cut: conv2d at line 1" in [f.reason for f in graph.frozen]


def test_an_input_without_a_batch_dimension(sketch, groups_of):
    w, v = sketch.parameter("a.weight", 2, 3, 1, 1), sketch.parameter("b.weight", 3, 2, 1, 1)
    y = sketch.call("conv2d", (2, 4, 4), input=sketch.input(3, 4, 4), weight=w, groups=1)
    y = sketch.call("conv2d", (3, 4, 4), input=y, weight=v, groups=1)
    assert groups_of(sketch.graph(y)) == ["a.weight/0[0] b.weight/1[0]", "a.weight/0[1] b.weight/1[1]"]


def test_positions_that_carry_labels_are_frozen(sketch):
    """A linear layer over the width makes channels of it; a convolution then mixes them."""
    x = sketch.linear(sketch.input(1, 3, 4, 5), "mix", 6)
    graph = sketch.graph(sketch.conv(x, "c", 2, kernel=3))
    assert graph.n_groups == 0
    assert "mixes positions: conv2d at line 1" in [f.reason for f in graph.frozen]


@pytest.mark.parametrize("nonzero", ["sigmoid", "relu"])
def test_a_convolution_sums_channels_away_exactly_whatever_they_carry(sketch, nonzero):
    """The consumer's own slices are set to zero, so sigmoid(0) = 0.5 adds nothing."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    x = sketch.call(nonzero, x.shape, input=x)
    assert sketch.graph(sketch.conv(x, "head", 2)).exact.all()


def test_macs_follow_both_channel_counts(sketch):
    graph = conv_pair(sketch, groups=1, width=4, out=6)
    kept = graph.all_kept()
    assert graph.cost.macs(kept) == 16 * (3 * 4 + 4 * 6 + 6 * 2)
    kept[:2] = False  # two of the stem
    assert graph.cost.macs(kept) == 16 * (3 * 2 + 2 * 6 + 6 * 2)
    assert graph.cost.params(kept) == (3 * 2 + 2) + (2 * 6 + 6) + (6 * 2 + 2)


@pytest.mark.parametrize(("groups", "width", "out"), [(2, 8, 8), (4, 8, 8), (8, 8, 16)])
def test_macs_of_grouped_convolutions(sketch, groups, width, out):
    graph = conv_pair(sketch, groups, width, out)
    kept = graph.all_kept()
    assert graph.cost.macs(kept) == 16 * (3 * width + width // groups * out + out * 2)
    kept[0] = False
    whole_groups = groups >= max(width // groups, out // groups)
    widths = (groups - 1) * width // groups if whole_groups else width - groups
    outs = (groups - 1) * out // groups if whole_groups else out
    inner = width // groups if whole_groups else width // groups - 1
    assert graph.cost.macs(kept) == 16 * (3 * widths + inner * outs + outs * 2)


def test_dead_output_channels_are_found_from_the_numbers(sketch):
    """In the other question (`data` given), zero means zero now: a channel that hears only dead inputs is dead."""
    first = np.ones((3, 2, 1, 1))
    first[1] = 0  # output 1 is zero
    second = np.ones((3, 3, 1, 1))
    second[2, [0, 2]] = 0  # output 2 hears input 1 alone
    x = sketch.input(1, 2, 4, 4)
    w, v = sketch.parameter("a.weight", 3, 2, 1, 1, data=first), sketch.parameter("b.weight", 3, 3, 1, 1, data=second)
    x = sketch.call("conv2d", (1, 3, 4, 4), input=x, weight=w, groups=1)
    y = sketch.call("conv2d", (1, 3, 4, 4), input=sketch.relu(x), weight=v, groups=1)
    assert x.facets[0].zero.ravel().tolist() == [False, True, False]
    assert y.facets[0].zero.ravel().tolist() == [False, False, True]


def test_dead_output_channels_of_a_grouped_transposed_convolution(sketch):
    weight = np.ones((4, 1, 1, 1))
    weight[[0, 1]] = 0  # the first group's inputs
    w = sketch.parameter("t.weight", 4, 1, 1, 1, data=weight)
    x = sketch.input(1, 4, 4, 4)
    y = sketch.call("conv_transpose2d.input", (1, 2, 4, 4), input=x, weight=w, groups=2)
    assert y.facets[0].zero.ravel().tolist() == [True, False]


class Experts(nn.Module):
    """Kernels mixed for every sample of flat ones: a dense layer, a depthwise one and a dense one, each with a bias."""

    def __init__(self, sizes=((4, 6, 1), (6, 6, 6), (6, 4, 1)), experts=3):
        super().__init__()
        self.stem, self.route, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, experts), nn.Conv2d(4, 2, 1)
        self.sizes = sizes
        self.kernels = nn.ParameterList(torch.randn(experts, o * i // g * 9) for i, o, g in sizes)
        self.biases = nn.ParameterList(torch.randn(experts, o) for _, o, _ in sizes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        shares = torch.sigmoid(self.route(x.mean((2, 3))))
        for (i, o, g), kernels, biases in zip(self.sizes, self.kernels, self.biases, strict=True):
            n, _, h, w = x.shape
            weight, bias = (shares @ kernels).view(n * o, i // g, 3, 3), (shares @ biases).view(n * o)
            y = functional.conv2d(x.reshape(1, n * i, h, w), weight, bias, padding=1, groups=n * g)
            x = torch.relu(y.view(n, o, h, w))
        return self.head(x)


@pytest.mark.parametrize("batch", [1, 2])
def test_flat_kernels_of_experts_are_cut_along_the_side_of_which_more_can_go(batch):
    """The inner channels go: outputs of the first table, groups of the second and inputs of the third."""
    torch.manual_seed(0)
    net, x = Experts().eval(), torch.randn(batch, 3, 5, 5)
    graph = trace(net, (x,))
    (inner,) = (found for found in graph.sets if ("kernels.0", 1) in [member[:2] for member in found.members])
    assert len(inner.groups) == 6
    removed = np.zeros(graph.n_groups, dtype=np.bool_)
    removed[inner.groups[[1, 4]]] = True
    plan = graph.plan(removed)
    slimmed, masked = slim(net, plan, (x,)), mask(net, plan)
    shapes = [tuple(tensor.shape) for tensor in slimmed.state_dict().values()]
    assert shapes.count((3, 4 * 4 * 9)) == 2  # of the first table and of the third
    assert (3, 4 * 9) in shapes
    torch.testing.assert_close(slimmed(x), masked(x), rtol=1e-4, atol=1e-4)
    reasons = {name: entry.reason for entry in graph.frozen for name in entry.parameters}
    for name in ("stem.weight", "biases.2"):
        assert "both lie in one dimension of a parameter" in reasons[name]

import pytest


def normalized(sketch, kind: str, channels: int = 4, affine: bool = True, activation: str = "relu", **attrs):
    """A convolution, a normalization and a sum over channels, which tells whether zeros stay zero."""
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", channels)
    given = {n: sketch.parameter(n, channels) for n in ("weight", "bias")} if affine else {}
    y = sketch.call(kind, x.shape, input=x, **given, **attrs)
    y = sketch.call(activation, y.shape, input=y)
    return sketch.graph(sketch.call("sum", (2, 4, 4), input=y, dim=[1]))


def test_batch_norm_couples_all_its_parameters(sketch, groups_of):
    stats = {name: sketch.parameter(name, 2) for name in ("running_mean", "running_var")}
    graph = normalized(sketch, "batch_norm", 2, **stats)
    assert groups_of(graph) == [
        f"running_mean/0[{i}] running_var/0[{i}] c.weight/0[{i}] c.bias/0[{i}] weight/0[{i}] bias/0[{i}]"
        for i in range(2)
    ]
    assert graph.exact.all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("activation", "exact"), [("relu", True), ("sigmoid", False)])
def test_batch_norm_keeps_zeros(sketch, affine, activation, exact):
    """Zero mean, zero shift: what was zero stays zero, until an activation that is not zero at zero."""
    stats = {name: sketch.parameter(name, 4) for name in ("running_mean", "running_var")}
    graph = normalized(sketch, "batch_norm", affine=affine, activation=activation, **stats)
    assert graph.n_groups == 4
    assert graph.exact.all() == exact


def test_batch_statistics_make_what_lies_along_the_samples_inexact(sketch):
    x = sketch.linear(sketch.input(2, 3), "fc", 6)
    y = sketch.call("batch_norm", (6, 2), input=sketch.call("t", (6, 2), input=x))
    graph = sketch.graph(sketch.linear(sketch.call("t", (2, 6), input=y), "head", 2))
    assert graph.n_groups == 6
    assert not graph.exact.any()
    assert str(graph.why_inexact(0)).startswith("statistics over positions")


def test_instance_norm_is_exact(sketch):
    graph = normalized(sketch, "instance_norm")
    assert graph.n_groups == 4
    assert graph.exact.all()


@pytest.mark.parametrize(
    ("groups", "channels", "expected", "exact"),
    [
        (1, 4, 4, False),  # one group: all channels share their statistics
        (2, 8, 4, False),  # more channels in a group than groups: the same position of both goes
        (4, 8, 4, True),  # whole groups of two go
        (4, 4, 4, True),  # every channel by itself
    ],
)
def test_group_norm(sketch, groups, channels, expected, exact):
    graph = normalized(sketch, "group_norm", channels, num_groups=groups)
    assert graph.n_groups == expected
    assert graph.exact.all() == exact
    assert graph.exact.any() == exact
    if not exact:
        assert graph.why_inexact(0) == "statistics over channels: group_norm at line 1"


def test_group_norm_of_whole_groups_writes_them_out(sketch, groups_of):
    graph = normalized(sketch, "group_norm", 4, num_groups=2)
    assert groups_of(graph) == [f"c.weight/0{p} c.bias/0{p} weight/0{p} bias/0{p}" for p in ("[0,1]", "[2,3]")]


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_over_channels_is_inexact(sketch, affine):
    x = sketch.linear(sketch.input(2, 5, 3), "fc", 4)
    given = {n: sketch.parameter(n, 4) for n in ("weight", "bias")} if affine else {}
    y = sketch.call("layer_norm", x.shape, input=x, normalized_shape=[4], **given)
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert graph.n_groups == 4
    assert not graph.exact.any()
    assert graph.why_inexact(0) == "statistics over channels: layer_norm at line 1"


def test_layer_norm_over_positions_lets_channels_pass(sketch):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 4)
    given = {n: sketch.parameter(n, 4, 4) for n in ("weight", "bias")}
    y = sketch.call("layer_norm", x.shape, input=x, normalized_shape=[4, 4], **given)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 4
    assert graph.exact.all()


def test_layer_norm_over_all_dimensions_cuts_its_weight_along_the_right_one(sketch, groups_of):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 2)
    weight = sketch.parameter("weight", 2, 4, 4)
    y = sketch.call("layer_norm", x.shape, input=x, normalized_shape=[2, 4, 4], weight=weight)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert groups_of(graph) == [f"c.weight/0[{i}] c.bias/0[{i}] weight/0[{i}] head.weight/1[{i}]" for i in range(2)]


def test_layer_norm_settles_on_a_dimension_that_is_not_normalized(sketch):
    """Labels that differ over heads and channels: kept apart by head, the statistics run inside one group."""
    x = sketch.linear(sketch.input(2, 5, 3), "fc", 6)
    x = sketch.call("view", (2, 5, 3, 2), input=x, shape=[2, 5, 3, 2])
    y = sketch.call("layer_norm", x.shape, input=x, normalized_shape=[2])
    y = sketch.call("flatten", (2, 5, 6), input=y)
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert graph.n_groups == 3
    assert graph.exact.all()


@pytest.mark.parametrize(("kind", "exact_zero"), [("layer_norm", False), ("rms_norm", True)])
def test_only_a_norm_without_a_mean_keeps_zeros(sketch, kind, exact_zero):
    x = sketch.linear(sketch.input(2, 5, 3), "fc", 4)
    y = sketch.call(kind, x.shape, input=x, normalized_shape=[4])
    assert y.facets[0].zero.all() == exact_zero


def test_prelu_slopes_go_with_their_channels(sketch, groups_of):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 2)
    y = sketch.call("prelu", x.shape, input=x, weight=sketch.parameter("slope", 2))
    y = sketch.call("prelu", x.shape, input=y, weight=sketch.parameter("one", 1))
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert groups_of(graph) == [f"c.weight/0[{i}] c.bias/0[{i}] slope/0[{i}] head.weight/1[{i}]" for i in range(2)]


def test_a_slope_that_cannot_be_cut_freezes_the_channels(sketch):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 2)
    y = sketch.call("prelu", x.shape, input=x, weight=sketch.call("rand", (2,)))
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 0
    assert any(f.reason == "its weight cannot be cut: prelu at line 2" for f in graph.frozen)


@pytest.mark.parametrize(("dim", "exact"), [(1, False), (-1, True), (-3, False)])
def test_softmax(sketch, dim, exact):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 4)
    y = sketch.call("softmax", x.shape, input=x, dim=dim)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 4
    assert graph.exact.all() == exact


def test_softmax_over_a_dimension_that_is_united_anyway_is_exact(sketch):
    """Split attention: softmax over the two parts of every channel, which go together."""
    x = sketch.linear(sketch.input(2, 3), "fc", 6)
    x = sketch.call("view", (2, 2, 3), input=x, shape=[2, 2, 3])
    y = sketch.call("flatten", (2, 6), input=sketch.call("softmax", (2, 2, 3), input=x, dim=1))
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert graph.n_groups == 3
    assert graph.exact.all()


def test_onnx_softmax_before_opset_13_ran_over_all_that_follows(sketch):
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 4)
    y = sketch.onnx("Softmax", x.shape, input=x, axis=0, opset=11)
    assert not sketch.graph(sketch.conv(y, "head", 2)).exact.any()


def test_normalizing_what_cannot_be_cut_pins_the_parameters(sketch):
    given = {n: sketch.parameter(n, 3) for n in ("weight", "bias", "running_mean", "running_var")}
    y = sketch.call("batch_norm", (2, 3, 4, 4), input=sketch.input(2, 3, 4, 4), **given)
    graph = sketch.graph(y)
    assert graph.n_groups == 0
    assert graph.frozen == []


@pytest.mark.parametrize(("groups", "sets", "exact"), [(1, 12, False), (2, 6, False), (6, 6, True), (12, 12, True)])
def test_an_instance_norm_over_groups_is_a_group_norm(sketch, groups, sets, exact):
    """(N, C, H, W) read as (N, G, rest), normalized, and read back: as exporters write a group norm."""
    x = sketch.conv(sketch.input(2, 3, 4, 4), "c", 12)
    given = {n: sketch.parameter(n, groups) for n in ("weight", "bias")}
    laid = (2, groups, 12 // groups * 16)
    y = sketch.call("view", laid, input=x, shape=laid)
    y = sketch.onnx("InstanceNormalization", laid, input=y, **given)
    y = sketch.call("view", x.shape, input=y, shape=x.shape)
    graph = sketch.graph(sketch.conv(y, "head", 2, bias=False))
    assert graph.n_groups == sets
    assert graph.exact.all() == exact
    assert {name for name, _ in graph.axes if name in given} == (set(given) if exact else set())

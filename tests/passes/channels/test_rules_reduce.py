import numpy as np
import pytest
import torch
from small import Net, each, image
from torch import nn

from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import trace
from graphprune.testing import Example, check_rule


def conv(sketch, channels: int = 4):
    return sketch.conv(sketch.input(2, 3, 4, 4), "c", channels)


@pytest.mark.parametrize("kind", ["mean", "amax", "sum", "var", "linalg_vector_norm", "logsumexp", "prod"])
@pytest.mark.parametrize("keepdim", [True, False])
def test_reductions_over_positions_let_channels_pass(sketch, kind, keepdim):
    shape = (2, 4, 1, 1) if keepdim else (2, 4)
    y = sketch.call(kind, shape, input=conv(sketch), dim=[-1, 2], keepdim=keepdim)
    y = sketch.call("flatten", (2, 4), input=y) if keepdim else y
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert graph.n_groups == 4
    assert graph.exact.all()


@pytest.mark.parametrize(
    ("kind", "exact"), [("sum", True), ("norm", True), ("mean", False), ("amax", False), ("logsumexp", False)]
)
@pytest.mark.parametrize("dim", [[1], [-3], 1, [1, 2, 3], None])
def test_reductions_over_channels(sketch, kind, exact, dim):
    shape = (2, 4, 4) if dim in ([1], [-3], 1) else (2,) if dim else ()
    graph = sketch.graph(sketch.call(kind, shape, input=sketch.relu(conv(sketch)), dim=dim))
    assert graph.n_groups == 4
    assert graph.exact.all() == exact
    if not exact:
        assert graph.why_inexact(0) == f"a statistic over channels: {kind} at line 2"


@pytest.mark.parametrize(
    ("order", "exact"), [(2, True), (1.5, True), (0, True), (float("inf"), True), (-1, False), (float("-inf"), False)]
)
def test_norms_over_channels_of_an_order_below_zero_count_zeros(sketch, order, exact):
    y = sketch.call("linalg_vector_norm", (2, 4, 4), input=sketch.relu(conv(sketch)), ord=order, dim=[1])
    assert sketch.graph(y).exact.all() == exact


def test_a_sum_after_a_reduction_that_is_not_zero_at_zero(sketch):
    y = sketch.call("logsumexp", (2, 4), input=conv(sketch), dim=[2, 3])
    assert not sketch.graph(sketch.call("sum", (2,), input=y, dim=[1])).exact.any()


def test_two_results(sketch):
    values, indices = sketch.call("max.dim", (2, 4, 4), (2, 4, 4), input=conv(sketch), dim=3, keepdim=False)
    assert values.facets[0].dims == indices.facets[0].dims == (1,)


@pytest.mark.parametrize("table", ["aten", "onnx"])
@pytest.mark.parametrize("way", ["max", "min"])
@pytest.mark.parametrize("dim", [1, -3])
def test_a_position_among_channels_keeps_them(sketch, table, way, dim):
    x, shape = sketch.relu(conv(sketch)), (2, 4, 4)
    if table == "aten":
        y = sketch.call(f"arg{way}", shape, input=x, dim=dim)
    else:
        y = sketch.onnx(f"Arg{way.title()}", shape, input=x, axis=dim, keepdims=0)
    graph = sketch.graph(y)
    assert graph.n_groups == 0
    assert graph.frozen[0].reason.startswith("gives positions among channels: ")


def test_a_position_among_all_elements_keeps_the_channels(sketch):
    graph = sketch.graph(sketch.call("argmax", (), input=conv(sketch)))
    assert graph.n_groups == 0


def test_positions_along_a_row_of_each_channel_leave_the_channels_free(sketch):
    y = sketch.call("argmax", (2, 4, 4), input=conv(sketch), dim=3)
    assert y.facets[0].dims == (1,)
    assert not y.facets[0].zero.any()
    assert sketch.graph(sketch.call("sum", (2, 4), input=y, dim=[1])).n_groups == 4


@pytest.mark.parametrize("kind", ["max.dim", "min.dim", "median.dim", "mode", "kthvalue"])
def test_positions_beside_extrema_keep_channels_where_they_are_read(kind):
    """`x.max(1)` gives values and positions; who takes the values alone has a statistic over channels."""
    pick = {
        "max.dim": lambda x: x.max(1),
        "min.dim": lambda x: x.min(1),
        "median.dim": lambda x: x.median(1),
        "mode": lambda x: x.mode(1),
        "kthvalue": lambda x: x.kthvalue(2, 1),
    }[kind]
    layer = nn.Conv2d(3, 4, 1)
    with_positions = Net(lambda net, x: pick(net.first(x))[0] + pick(net.first(x))[1], first=layer)
    graph = trace(with_positions, image(2, 3, 4, 4))
    assert graph.n_groups == 0
    assert graph.frozen[0].reason.startswith("gives positions among channels: ")
    graph = trace(Net(lambda net, x: pick(net.first(x)).values, first=layer), image(2, 3, 4, 4))
    assert str(graph.why_inexact(0)).startswith("a statistic over channels: ")


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("max_pool2d", (2, 4, 2, 2)), ("adaptive_avg_pool2d", (2, 4, 1, 1)), ("upsample_nearest2d.vec", (2, 4, 8, 8))],
)
def test_pooling_and_resampling_let_channels_pass(sketch, kind, shape):
    y = sketch.call(kind, shape, input=conv(sketch))
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 4
    assert graph.exact.all()


def test_pooling_freezes_positions_that_became_channels(sketch):
    x = sketch.linear(sketch.input(2, 3, 4, 5), "mix", 6)
    graph = sketch.graph(sketch.call("avg_pool2d", (2, 3, 2, 3), input=x))
    assert graph.n_groups == 0
    assert "mixes positions: avg_pool2d at line 1" in [f.reason for f in graph.frozen]


def test_one_dimensional_pooling_of_the_dimension_before(sketch):
    """Only the last dimension is pooled: the one before carries channels, with or without a batch."""
    x = sketch.linear(sketch.input(2, 5, 3), "fc", 6)
    x = sketch.call("transpose", (2, 6, 5), input=x, dim0=1, dim1=2)
    assert sketch.call("max_pool1d", (2, 6, 2), input=x).facets[0].dims == (1,)


def test_onnx_reduce_without_axes_may_mean_nothing_or_all(sketch):
    x = sketch.relu(conv(sketch))
    same = sketch.onnx("ReduceMean", x.shape, input=x, noop_with_empty_axes=1)
    assert same.facets[0].dims == (1,)
    sketch.onnx("ReduceMean", (1, 1, 1, 1), input=x, noop_with_empty_axes=0)
    assert not sketch.graph(same).exact.any()


@pytest.mark.parametrize(
    ("axes", "before", "after"),
    [(None, [1, 4, 8, 8], [None, 3, None, None]), ([2, 3], [8, 8], [None, None]), ([-1, 1], [8, 4], [None, 3])],
)
def test_sizes_of_an_onnx_resize_follow_where_they_are_named(sketch, axes, before, after):
    sizes = Value((len(before),), constant=True, data=np.array(before))
    y = sketch.onnx("Resize", (1, 4, 8, 8), input=conv(sketch), sizes=sizes, axes=axes)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert sketch.resized(graph, 1, [1]) == {"sizes": after}


def test_maxima_put_back_where_they_were():
    def forward(net, x):
        y, places = torch.nn.functional.max_pool2d(net.first(x), 2, return_indices=True)
        return net.last(torch.nn.functional.max_unpool2d(y, places, 2))

    net = Net(forward, first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1))
    groups = each(4, "first.weight/0", "first.bias/0", "last.weight/1")
    check_rule("unpooling", Example(net, image(2, 3, 4, 4), groups=groups))


def test_places_that_cannot_be_cut_hold_channels_along_positions():
    def forward(net, x):
        y, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
        return torch.nn.functional.max_unpool2d(net.mix(y), places, 2)

    net = Net(forward, mix=nn.Linear(2, 2))
    check_rule("unpooling", Example(net, image(2, 3, 4, 4), refused="meets a tensor that cannot be cut"))

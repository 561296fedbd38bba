import numpy as np
import pytest

from graphprune.passes.channels.value import Value


def stem(sketch, channels: int = 4):
    return sketch.conv(sketch.input(1, 3, 4, 4), "c", channels, bias=False)


def head(sketch, y):
    return sketch.graph(sketch.conv(y, "head", 2, bias=False))


def known(*items):
    return Value(np.shape(items), constant=True, data=np.array(items))


def test_flip_over_channels(sketch, groups_of):
    y = sketch.call("flip", (1, 4, 4, 4), input=stem(sketch), dims=[-3])
    assert groups_of(head(sketch, y)) == [f"c.weight/0[{i}] head.weight/1[{3 - i}]" for i in range(4)]


@pytest.mark.parametrize(("dims", "groups"), [([2, 3], 4), ([-1], 4), ([1], 0), ([], 0)])
def test_roll(sketch, dims, groups):
    y = sketch.call("roll", (1, 4, 4, 4), input=stem(sketch), shifts=[1] * max(1, len(dims)), dims=dims)
    assert head(sketch, y).n_groups == groups


@pytest.mark.parametrize(("dim", "groups"), [(-1, 4), (1, 0)])
def test_cumulative_sums(sketch, dim, groups):
    y = sketch.call("cumsum", (1, 4, 4, 4), input=stem(sketch), dim=dim)
    assert head(sketch, y).n_groups == groups


def test_one_known_index_picks_channels(sketch, groups_of):
    y = sketch.call("index", (1, 3, 4, 4), input=stem(sketch), indices=[None, known(3, 0, 0)])
    graph = head(sketch, y)
    assert groups_of(graph)[0] == "c.weight/0[0] head.weight/1[1,2]"
    found = sketch.resized(graph, 1, [1])["indices"]
    assert found[0] is None
    assert found[1].after.tolist() == [2, 0, 0]


def test_a_known_index_of_positions_lets_channels_pass(sketch):
    y = sketch.call("index", (1, 4, 2, 4), input=stem(sketch), indices=[None, None, known(3, 0)])
    graph = head(sketch, y)
    assert graph.n_groups == 4
    assert sketch.resized(graph, 1, [0]) == {}


def test_adjacent_indices_stand_where_they_were(sketch):
    """x[:, :, i, j] with i, j of shape (2, 3): (1, 4, 2, 3)."""
    pair = known([0, 1, 2], [3, 2, 1])
    y = sketch.call("index", (1, 4, 2, 3), input=stem(sketch), indices=[None, None, pair, pair])
    assert y.facets[0].dims == (1,)
    assert np.empty((1, 4, 4, 4))[:, :, pair.data, pair.data].shape == y.shape


def test_indices_apart_come_first(sketch):
    """x[i, :, j] with i, j of shape (3,): (3, 4, 4)."""
    i, j = known(0, 0, 0), known(3, 2, 1)
    y = sketch.call("index", (3, 4, 4), input=stem(sketch), indices=[i, None, j])
    assert np.empty((1, 4, 4, 4))[i.data, :, j.data].shape == y.shape
    assert y.facets[0].dims == (1,)


@pytest.mark.parametrize("index", [Value((3,)), Value((4,), constant=True, data=np.array([True, False, True, True]))])
def test_other_indices_of_channels_freeze_them(sketch, index):
    y = sketch.call("index", (1, 3, 4, 4), input=stem(sketch), indices=[None, index])
    graph = head(sketch, y)
    assert graph.n_groups == 0
    assert any("index at line 1" in f.reason for f in graph.frozen)


@pytest.mark.parametrize(("dim", "groups"), [(2, 4), (1, 0)])
def test_windows(sketch, dim, groups):
    shape = (1, 4, 3, 4, 2) if dim == 2 else (1, 3, 4, 4, 2)
    y = sketch.call("unfold", shape, input=stem(sketch), dimension=dim, size=2, step=1)
    y = sketch.call("mean", shape[:-1], input=y, dim=[-1])
    assert head(sketch, y).n_groups == groups


@pytest.mark.parametrize(("dim", "groups"), [(1, 0), (-1, 4), (2, 4)])
def test_gather_lets_channels_pass_along_other_dimensions(sketch, dim, groups):
    y = sketch.call("gather", (1, 4, 4, 4), input=stem(sketch), dim=dim, index=stem_index(sketch))
    assert head(sketch, y).n_groups == groups


def test_gather_by_an_index_without_channels_freezes(sketch):
    """What it picks depends on where a channel stands."""
    y = sketch.call("gather", (1, 4, 4, 4), input=stem(sketch), dim=2, index=sketch.input(1, 4, 4, 4))
    assert head(sketch, y).n_groups == 0


def stem_index(sketch):
    """Positions that every channel chooses by itself."""
    return sketch.call("argsort", (1, 4, 4, 4), input=sketch.conv(sketch.input(1, 3, 4, 4), "i", 4), dim=-1)


def test_scattered_values_meet_what_they_are_put_into(sketch, groups_of):
    x, y = stem(sketch), sketch.conv(sketch.input(1, 3, 4, 4), "d", 4, bias=False)
    index = sketch.call("argsort", (1, 4, 4, 4), input=y, dim=-1)
    z = sketch.call("scatter.src", (1, 4, 4, 4), input=x, dim=2, index=index, src=y)
    assert groups_of(head(sketch, z))[0] == "c.weight/0[0] d.weight/0[0] head.weight/1[0]"


def test_windows_written_out_and_put_back(sketch, groups_of):
    rows = sketch.call("im2col", (1, 36, 16), input=stem(sketch), kernel_size=[3, 3])
    mixed = sketch.conv(rows, "mix", 18, bias=False)
    graph = head(sketch, sketch.call("col2im", (1, 2, 4, 4), input=mixed, output_size=[4, 4], kernel_size=[3, 3]))
    nine = [",".join(str(9 * channel + i) for i in range(9)) for channel in range(4)]
    assert groups_of(graph) == [f"c.weight/0[{i}] mix.weight/1[{nine[i]}]" for i in range(4)] + [
        f"mix.weight/0[{nine[i]}] head.weight/1[{i}]" for i in range(2)
    ]


def test_sampling_freezes_the_grid_alone(sketch):
    grid = sketch.call("permute", (1, 4, 4, 2), input=sketch.conv(sketch.input(1, 3, 4, 4), "g", 2), dims=[0, 2, 3, 1])
    graph = head(sketch, sketch.call("grid_sampler", (1, 4, 4, 4), input=stem(sketch), grid=grid))
    assert [s.name for s in graph.sets] == ["c"]
    assert any("its channels end in grid_sampler" in frozen.reason for frozen in graph.frozen)


@pytest.mark.parametrize(("arguments", "groups"), [({}, 4), ({"prepend": Value((1, 4, 4, 1))}, 0), ({"dim": 1}, 0)])
def test_differences(sketch, arguments, groups):
    y = sketch.call("diff", (1, 4, 4, 4), **{"input": stem(sketch), "dim": -1, **arguments})
    assert head(sketch, y).n_groups == groups


def test_positions_of_extrema_are_not_zero(sketch):
    """The largest of zeros is zero, but where it was found is not."""
    largest, where = sketch.call("max.dim", (1, 4, 4), (1, 4, 4), input=stem(sketch), dim=3)
    assert largest.facets[0].zero.all()
    assert not where.facets[0].zero.any()


def permuted(sketch, x, *dims):
    return sketch.call("permute", tuple(x.shape[d] for d in dims), input=x, dims=dims)


@pytest.mark.parametrize("computed", [False, True])
def test_slices_at_positions_carry_channels(sketch, groups_of, computed):
    """A map laid out as (H, W, N, C), read at a table of positions, as exporters write resampling."""
    table = Value((3, 3, 2), constant=not computed, data=None if computed else np.zeros((3, 3, 2), np.int64))
    y = sketch.onnx("GatherND", (3, 3, 1, 4), input=permuted(sketch, stem(sketch), 2, 3, 0, 1), index=table)
    graph = head(sketch, permuted(sketch, y, 2, 3, 0, 1))
    assert groups_of(graph) == [f"c.weight/0[{i}] head.weight/1[{i}]" for i in range(4)]


@pytest.mark.parametrize(("dims", "batch"), [((1, 0, 2, 3), 0), ((0, 1, 2, 3), 2)])
def test_slices_of_picked_channels_are_frozen(sketch, dims, batch):
    """Channels that the positions name, and channels for each of which other positions are picked."""
    x = permuted(sketch, stem(sketch), *dims)
    table = sketch.input(*x.shape[:batch], 5, 1)
    y = sketch.onnx("GatherND", (*x.shape[:batch], 5, *x.shape[batch + 1 :]), input=x, index=table, batch_dims=batch)
    graph = sketch.graph(sketch.linear(sketch.call("mean", (5, 4), input=y, dim=[-1, -2]), "head", 2))
    assert graph.n_groups == 0
    assert any("every position is picked by itself: GatherND" in f.reason for f in graph.frozen)


@pytest.mark.parametrize(("reduction", "exact"), [("none", True), ("add", True), ("mul", False)])
def test_slices_that_are_replaced_meet_what_replaces_them(sketch, groups_of, reduction, exact):
    x = permuted(sketch, stem(sketch), 2, 3, 0, 1)
    y = permuted(sketch, sketch.conv(sketch.input(1, 3, 2, 3), "d", 4, bias=False), 2, 3, 0, 1)
    where = Value((2, 3, 2), constant=True, data=np.zeros((2, 3, 2), np.int64))
    z = sketch.onnx("ScatterND", x.shape, input=x, index=where, source=y, reduction=reduction.encode())
    graph = sketch.graph(sketch.call("sum", (4, 4, 1), input=z, dim=[3]))
    assert groups_of(graph) == [f"c.weight/0[{i}] d.weight/0[{i}]" for i in range(4)]
    assert graph.exact.all() == exact

import numpy as np
import pytest

from graphprune.passes.channels.value import Value


def stem(sketch, channels: int):
    return sketch.conv(sketch.input(1, 3, 4, 4), "c", channels, bias=False)


def head(sketch, y, name: str = "head"):
    return sketch.conv(y, name, 2, bias=False)


def cat(sketch, *values, dim: int = 1):
    shape = list(values[0].shape)
    shape[dim] = sum(v.shape[dim] for v in values)
    return sketch.call("cat", tuple(shape), tensors=list(values), dim=dim)


def test_concatenated_channels_follow_one_another(sketch, groups_of):
    x = sketch.input(1, 3, 4, 4)
    a, b = sketch.conv(x, "a", 2, bias=False), sketch.conv(x, "b", 3, bias=False)
    assert groups_of(sketch.graph(head(sketch, cat(sketch, a, b, dim=-3)))) == [
        "a.weight/0[0] head.weight/1[0]",
        "a.weight/0[1] head.weight/1[1]",
        "b.weight/0[0] head.weight/1[2]",
        "b.weight/0[1] head.weight/1[3]",
        "b.weight/0[2] head.weight/1[4]",
    ]


def test_concatenation_over_positions_unites_channels(sketch, groups_of):
    x = sketch.input(1, 3, 4, 4)
    a, b = sketch.conv(x, "a", 2, bias=False), sketch.conv(x, "b", 2, bias=False)
    assert groups_of(sketch.graph(head(sketch, cat(sketch, a, b, dim=2)))) == [
        f"a.weight/0[{i}] b.weight/0[{i}] head.weight/1[{i}]" for i in range(2)
    ]


def test_concatenation_with_what_cannot_be_cut(sketch, groups_of):
    """Along channels the rest stays free; along positions it does not."""
    x = sketch.input(1, 2, 4, 4)
    a = sketch.conv(x, "a", 2, bias=False)
    joined = cat(sketch, x, a)
    assert groups_of(sketch.graph(head(sketch, joined))) == [f"a.weight/0[{i}] head.weight/1[{i + 2}]" for i in (0, 1)]


def test_concatenation_over_positions_with_what_cannot_be_cut(sketch):
    x = sketch.input(1, 2, 4, 4)
    graph = sketch.graph(head(sketch, cat(sketch, x, sketch.conv(x, "a", 2), dim=-1)))
    assert graph.n_groups == 0
    assert "is joined to a tensor that cannot be cut: cat at line 1" in [f.reason for f in graph.frozen]


def test_parts_of_a_split(sketch, groups_of):
    a, b = sketch.call("split_with_sizes", (1, 2, 4, 4), (1, 3, 4, 4), input=stem(sketch, 5), split_sizes=[2, 3], dim=1)
    graph = sketch.graph(head(sketch, a, "a"), head(sketch, b, "b"))
    assert groups_of(graph) == [
        "c.weight/0[0] a.weight/1[0]",
        "c.weight/0[1] a.weight/1[1]",
        "c.weight/0[2] b.weight/1[0]",
        "c.weight/0[3] b.weight/1[1]",
        "c.weight/0[4] b.weight/1[2]",
    ]
    assert [s.groups.tolist() for s in graph.sets] == [[0, 1], [2, 3, 4]]
    assert sketch.resized(graph, 1, [1, 2, 4]) == {"split_sizes": [1, 1]}


def test_a_part_of_one_channel_stays(sketch):
    a, b = sketch.call("split_with_sizes", (1, 1, 4, 4), (1, 4, 4, 4), input=stem(sketch, 5), split_sizes=[1, 4], dim=1)
    graph = sketch.graph(head(sketch, a, "a"), head(sketch, b, "b"))
    assert graph.n_groups == 4
    reason = "its channels can only go all at once: split_with_sizes at line 1"
    assert reason in [f.reason for f in graph.frozen]


def test_halves_that_meet_are_one_set(sketch, groups_of):
    shape = (1, 2, 4, 4)
    a, b = sketch.call("split_with_sizes", shape, shape, input=stem(sketch, 4), split_sizes=[2, 2], dim=1)
    graph = sketch.graph(head(sketch, sketch.call("mul", shape, input=a, other=b)))
    assert groups_of(graph) == ["c.weight/0[0,2] head.weight/1[0]", "c.weight/0[1,3] head.weight/1[1]"]


def test_halves_without_parameters_of_their_own_are_sets_of_their_own(sketch):
    """They differ in their operators alone, yet neither may be emptied."""
    shape = (1, 2, 4, 4)
    a, b = sketch.call("split_with_sizes", shape, shape, input=stem(sketch, 4), split_sizes=[2, 2], dim=1)
    a, b = sketch.call("max_pool2d", (1, 2, 2, 2), input=a), sketch.call("avg_pool2d", (1, 2, 2, 2), input=b)
    graph = sketch.graph(head(sketch, cat(sketch, a, b)))
    assert sorted(s.groups.tolist() for s in graph.sets) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("start", "end", "channels"),
    [(0, 3, [0, 1, 2]), (2, None, [2, 3, 4, 5]), (-2, 2**63 - 1, [4, 5]), (1, -1, [1, 2, 3, 4])],
)
def test_a_slice_of_channels(sketch, start, end, channels):
    x = stem(sketch, 6)
    y = sketch.call("slice", (1, len(channels), 4, 4), input=x, dim=-3, start=start, end=end)
    graph = sketch.graph(head(sketch, y), head(sketch, x, "all"))
    used = [g for g in graph.groups if any(m.parameter == "head.weight" for m in g.members)]
    assert [g.members[0].indices[0] for g in used] == channels
    # without the first and the last channel, the slice is shorter at the ends it reaches
    gone = {0, 5}
    first = sum(1 for i in range(channels[0]) if i not in gone)
    length = sum(1 for i in channels if i not in gone)
    found = sketch.resized(graph, 1, sorted(gone)) or {"start": channels[0], "end": channels[-1] + 1}
    kept = [i for i in range(6) if i not in gone]
    assert kept[found["start"] : found["end"]] == kept[first : first + length]


def test_channels_that_no_slice_takes_may_go(sketch):
    x = stem(sketch, 4)
    y = sketch.call("slice", (1, 2, 4, 4), input=x, dim=1, start=0, end=2)
    graph = sketch.graph(head(sketch, y))
    assert graph.n_groups == 4
    assert graph.exact.all()


def test_narrow_is_a_slice(sketch):
    x = stem(sketch, 6)
    y = sketch.call("narrow", (1, 3, 4, 4), input=x, dim=1, start=-4, length=3)
    graph = sketch.graph(head(sketch, y), head(sketch, x, "all"))
    assert sketch.resized(graph, 1, [0, 3]) == {"start": 1, "length": 2}


def test_a_slice_with_a_step_over_channels_loses_whole_steps(sketch, groups_of):
    """The same slice then picks what stays."""
    x = sketch.call("slice", (1, 2, 4, 4), input=stem(sketch, 4), dim=1, start=1, end=4, step=2)
    graph = sketch.graph(head(sketch, x))
    assert [group.partition(" ")[0] for group in groups_of(graph)] == ["c.weight/0[0,1]", "c.weight/0[2,3]"]
    assert sketch.resized(graph, 1, [0]) == {}


def test_a_slice_of_uneven_steps_over_channels_is_frozen(sketch):
    x = sketch.call("slice", (1, 2, 4, 4), input=stem(sketch, 5), dim=1, start=0, end=3, step=2)
    graph = sketch.graph(head(sketch, x))
    assert graph.n_groups == 0
    assert "a slice with a step over channels: slice at line 1" in [f.reason for f in graph.frozen]


def test_a_slice_with_a_step_over_positions_lets_channels_pass(sketch):
    x = sketch.call("slice", (1, 4, 2, 4), input=stem(sketch, 4), dim=2, start=0, end=4, step=2)
    assert sketch.graph(head(sketch, x)).n_groups == 4


def test_a_selected_channel_stays_and_is_counted_again(sketch):
    x = stem(sketch, 4)
    one = sketch.call("select", (1, 4, 4), input=x, dim=1, index=-2)
    graph = sketch.graph(head(sketch, x), one)
    assert [m.indices for g in graph.groups for m in g.members if m.parameter == "c.weight"] == [(0,), (1,), (3,)]
    assert sketch.resized(graph, 1, [0, 2]) == {"index": 1}


def test_channels_taken_apart_are_frozen(sketch):
    parts = sketch.call("unbind", *[(1, 4, 4)] * 4, input=stem(sketch, 4), dim=1)
    graph = sketch.graph(*parts)
    assert graph.n_groups == 0
    assert "is taken apart into single slices: unbind at line 1" in [f.reason for f in graph.frozen]


def test_known_indices_move_channels(sketch, groups_of):
    index = Value((3,), constant=True, data=np.array([2, 0, -4]))
    y = sketch.call("index_select", (1, 3, 4, 4), input=stem(sketch, 4), dim=1, index=index)
    graph = sketch.graph(head(sketch, y))
    assert groups_of(graph) == [
        "c.weight/0[0] head.weight/1[1,2]",
        "c.weight/0[1]",
        "c.weight/0[2] head.weight/1[0]",
        "c.weight/0[3]",
    ]
    assert sketch.resized(graph, 1, [1])["index"].after.tolist() == [1, 0, 0]
    assert sketch.resized(graph, 1, [0])["index"].after.tolist() == [1]


def test_computed_indices_freeze_channels(sketch):
    y = sketch.call("index_select", (1, 3, 4, 4), input=stem(sketch, 4), dim=1, index=sketch.input(3))
    graph = sketch.graph(head(sketch, y))
    assert graph.n_groups == 0
    assert "is picked by computed indices: index_select at line 1" in [f.reason for f in graph.frozen]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("index_select", {"dim": 0, "index": Value((5,))}), ("index", {"indices": [Value((5,))]})],
)
def test_what_is_looked_up_in_a_table_has_its_channels_and_is_worked_on_for_every_input(
    sketch, groups_of, kind, arguments
):
    rows = sketch.call(kind, (5, 2), input=sketch.parameter("table", 10, 2), **arguments)
    graph = sketch.graph(sketch.linear(sketch.relu(sketch.linear(rows, "a", 3)), "b", 2))
    assert groups_of(graph)[:2] == [f"table/1[{i}] a.weight/1[{i}]" for i in (0, 1)]
    assert graph.n_groups == 5
    assert graph.sets[0].outputs == (("table", 1, 1),)
    assert graph.cost.macs(graph.all_kept()) == 5 * (2 * 3 + 3 * 2)


def test_what_is_looked_up_by_known_indices_is_computed_once(sketch):
    index = Value((5,), constant=True, data=np.arange(5))
    rows = sketch.call("index_select", (5, 2), input=sketch.parameter("table", 10, 2), dim=0, index=index)
    assert rows.constant
    graph = sketch.graph(sketch.linear(rows, "a", 3))
    assert graph.cost.macs(graph.all_kept()) == 0


def test_stack_and_sum_over_the_new_dimension(sketch, groups_of):
    x = sketch.input(1, 3, 4, 4)
    a, b = sketch.conv(x, "a", 2, bias=False), sketch.conv(x, "b", 2, bias=False)
    y = sketch.call("stack", (1, 2, 2, 4, 4), tensors=[a, b], dim=-4)
    y = sketch.call("sum", (1, 2, 4, 4), input=y, dim=[1])
    assert groups_of(sketch.graph(head(sketch, y))) == [
        f"a.weight/0[{i}] b.weight/0[{i}] head.weight/1[{i}]" for i in range(2)
    ]


def test_padded_channels_are_cut_with_what_they_meet(sketch, groups_of):
    """The shortcut of CIFAR ResNets: zeros on both sides."""
    x = stem(sketch, 2)
    padded = sketch.call("pad", (1, 4, 4, 4), input=x, pad=[0, 0, 0, 0, 1, 1], mode="constant", value=None)
    y = sketch.call("add", padded.shape, input=padded, other=sketch.conv(x, "d", 4, bias=False))
    graph = sketch.graph(head(sketch, y))
    assert groups_of(graph) == [
        "c.weight/0[0] d.weight/0[1] d.weight/1[0] head.weight/1[1]",
        "c.weight/0[1] d.weight/0[2] d.weight/1[1] head.weight/1[2]",
        "d.weight/0[0] head.weight/1[0]",
        "d.weight/0[3] head.weight/1[3]",
    ]
    assert graph.exact.all()
    assert sketch.resized(graph, 1, [0, 2]) == {"pad": [0, 0, 0, 0, 0, 1]}
    assert sketch.resized(graph, 1, [1]) == {}


def test_padding_with_other_numbers_is_not_zero(sketch):
    x = sketch.relu(stem(sketch, 2))
    x = sketch.call("constant_pad_nd", (1, 3, 4, 4), input=x, pad=[0, 0, 0, 0, 0, 1], value=1.0)
    graph = sketch.graph(sketch.call("sum", (1, 4, 4), input=x, dim=[1]))
    assert graph.n_groups == 2
    assert graph.exact.all()  # the padded channel is no group, those before it are zero


def test_padding_positions_with_other_numbers_makes_channels_not_zero(sketch):
    x = sketch.call("pad", (1, 2, 6, 6), input=stem(sketch, 2), pad=[1, 1, 1, 1], mode="constant", value=1.0)
    assert not sketch.graph(sketch.call("sum", (1, 6, 6), input=x, dim=[1])).exact.any()


def test_negative_padding_crops(sketch):
    x = stem(sketch, 5)
    y = sketch.call("pad", (1, 3, 4, 4), input=x, pad=[0, 0, 0, 0, -1, -1], mode="constant", value=0)
    graph = sketch.graph(head(sketch, y))
    assert graph.n_groups == 5
    assert sketch.resized(graph, 1, [0, 2]) == {"pad": [0, 0, 0, 0, 0, -1]}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_neighbors(sketch, mode):
    x = sketch.call("pad", (1, 4, 6, 6), input=stem(sketch, 4), pad=[1, 1, 1, 1], mode=mode)
    assert sketch.graph(head(sketch, x)).exact.all()


def test_padding_channels_with_their_neighbors_freezes_them(sketch):
    x = sketch.call("pad", (1, 6, 4, 4), input=stem(sketch, 4), pad=[0, 0, 0, 0, 1, 1], mode="reflect")
    graph = sketch.graph(head(sketch, x))
    assert graph.n_groups == 0
    assert "is padded with its neighbors: pad at line 1" in [f.reason for f in graph.frozen]


def test_gated_halves(sketch, groups_of):
    y = sketch.call("glu", (1, 2, 4, 4), input=stem(sketch, 4), dim=-3)
    assert groups_of(sketch.graph(head(sketch, y))) == [
        "c.weight/0[0,2] head.weight/1[0]",
        "c.weight/0[1,3] head.weight/1[1]",
    ]


def test_onnx_slice_over_several_axes_and_backwards(sketch):
    def numbers(*items):
        return Value((len(items),), constant=True, data=np.array(items))

    x = stem(sketch, 6)
    y = sketch.onnx(
        "Slice",
        (1, 3, 2, 4),
        input=x,
        starts=numbers(1, -1),
        ends=numbers(4, -3),
        axes=numbers(1, -2),
        steps=numbers(1, -1),
    )
    graph = sketch.graph(head(sketch, y), head(sketch, x, "all"))
    assert sketch.resized(graph, 1, [0, 2, 3]) == {"starts": [0, 3], "ends": [1, 1]}


def test_onnx_split_and_pad_write_their_own_words(sketch):
    x = stem(sketch, 4)
    a, b = sketch.onnx("Split", (1, 2, 4, 4), (1, 2, 4, 4), input=x, axis=1)
    padded = sketch.onnx("Pad", (1, 3, 4, 4), input=a, pads=[0, 1, 0, 0, 0, 0, 0, 0])
    graph = sketch.graph(head(sketch, padded), head(sketch, b, "b"))
    assert sketch.resized(graph, 1, [0]) == {"split": [1, 2]}
    pad_group = next(g.index for g in graph.groups if len(g.members) == 1)
    assert sketch.resized(graph, 2, [pad_group]) == {"pads": [0] * 8}


def test_a_table_of_indices_reads_back_what_was_laid_out_flat(sketch, groups_of):
    """Two samples of three channels, laid out flat and picked as (2, 3, 1): the table follows the cut."""
    flat = sketch.call("flatten", (6,), input=sketch.linear(sketch.input(2, 5), "c", 3), start_dim=0)
    table = Value((2, 3, 1), constant=True, data=np.arange(6).reshape(2, 3, 1))
    x = sketch.onnx("Gather", (2, 3, 1), input=flat, index=table, axis=0)
    graph = sketch.graph(sketch.linear(sketch.call("flatten", (2, 3), input=x, start_dim=1), "head", 2))
    assert groups_of(graph) == [f"c.weight/0[{i}] c.bias/0[{i}] head.weight/1[{i}]" for i in range(3)]
    found = sketch.resized(graph, 2, [1])["index"]
    assert found.after.tolist() == [[[0], [1]], [[2], [3]]]
    assert found.period == 3


@pytest.mark.parametrize("table", [[[0, 1], [2, 3]], [[0, 1], [1, 0]]])
def test_a_table_that_lays_channels_along_two_dimensions_freezes_them(sketch, table):
    picked = Value((2, 2), constant=True, data=np.array(table))
    x = sketch.onnx("Gather", (1, 2, 2, 4, 4), input=stem(sketch, 4), index=picked, axis=1)
    graph = sketch.graph(sketch.linear(x, "head", 2))
    assert graph.n_groups == 0
    assert "is picked by indices of several dimensions: Gather at line 1" in [f.reason for f in graph.frozen]

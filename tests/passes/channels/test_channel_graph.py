import networkx as nx
import numpy as np
import pytest

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError


@pytest.fixture
def residual(sketch):
    """stem -> [inner -> join] + stem -> head: a trunk of three channels and a branch of four."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    y = sketch.conv(sketch.relu(sketch.conv(x, "inner", 4)), "join", 3)
    x = sketch.relu(sketch.call("add", x.shape, input=x, other=y))
    return sketch.graph(sketch.conv(x, "head", 2))


def flags(graph, *removed):
    return np.isin(np.arange(graph.n_groups), removed)


def test_sets_of_a_residual_block(residual):
    assert residual.n_groups == 7
    assert [(s.name, s.groups.tolist(), s.bypassed) for s in residual.sets] == [
        ("stem", [0, 1, 2], False),
        ("inner", [3, 4, 5, 6], True),
    ]
    assert residual.set_of.tolist() == [0, 0, 0, 1, 1, 1, 1]
    trunk = residual.sets[0]
    assert trunk.members == (
        ("stem.weight", 0, 1),
        ("stem.bias", 0, 1),
        ("inner.weight", 1, 1),
        ("join.weight", 0, 1),
        ("join.bias", 0, 1),
        ("head.weight", 1, 1),
    )
    assert trunk.layers == ("stem", "join")
    assert list(residual) == list(residual.sets)
    assert "7 groups in 2 sets" in repr(residual)


def test_axes_give_the_group_of_every_index(residual):
    assert residual.axes[("inner.weight", 0)].tolist() == [3, 4, 5, 6]
    assert residual.axes[("inner.weight", 1)].tolist() == [0, 1, 2]
    assert ("stem.weight", 1) not in residual.axes  # the images' channels
    assert ("head.weight", 0) not in residual.axes  # the outputs


def test_every_index_is_in_one_group_and_the_groups_say_the_same(residual):
    for group in residual.groups:
        for member in group.members:
            ids = residual.axes[(member.parameter, member.dim)]
            assert np.flatnonzero(ids == group.index).tolist() == list(member.indices)
    assert sum(len(g.members) for g in residual.groups) == sum(
        len(np.unique(ids[ids >= 0])) for ids in residual.axes.values()
    )


def test_frozen_channels_are_named_with_reason_and_parameters(residual):
    (frozen,) = residual.frozen
    assert frozen.reason == "is an output: the output of the model"
    assert frozen.channels == 2
    assert frozen.parameters == ("head.weight", "head.bias")


def test_frozen_buffers_are_not_reported(sketch):
    """What a user could prune is parameters; positions of a constant grid are no channels."""
    grid = sketch.analysis.parameter("grid", (1, 2, 4, 4))
    x = sketch.call("cat", (1, 5, 4, 4), tensors=[sketch.input(1, 3, 4, 4), grid], dim=1)
    graph = sketch.graph(sketch.conv(x, "head", 2))
    assert [f.reason for f in graph.frozen] == ["is an output: the output of the model"]


def test_values_with_channels(residual):
    dim, ids = residual.value_groups["add_4"]
    assert dim == 1
    assert ids.tolist() == [0, 1, 2]


def test_plan_and_back(residual):
    removed = flags(residual, 1, 3, 6)
    plan = residual.plan(removed, seed=1)
    assert plan.removed == {
        "stem.weight": {0: (1,)},
        "stem.bias": {0: (1,)},
        "inner.weight": {0: (0, 3), 1: (1,)},
        "inner.bias": {0: (0, 3)},
        "join.weight": {0: (1,), 1: (0, 3)},
        "join.bias": {0: (1,)},
        "head.weight": {1: (1,)},
    }
    assert plan.meta == {"seed": 1}
    assert plan.inputs == ({"shape": [1, 3, 4, 4], "dtype": "float32"},)
    assert plan.shapes["inner.weight"] == (4, 3, 1, 1)
    assert residual.removed_by(plan).tolist() == removed.tolist()
    assert residual.removed_by(PruningPlan.from_dict(plan.to_dict())).tolist() == removed.tolist()


def test_an_empty_plan_is_a_plan(residual):
    plan = residual.plan(flags(residual))
    assert plan.removed == {}
    assert not residual.removed_by(plan).any()


def test_a_trunk_cannot_be_emptied(residual):
    with pytest.raises(PlanError, match="removes every channel of stem: keep at least one"):
        residual.plan(flags(residual, 0, 1, 2))


def test_a_plan_from_a_file_cannot_empty_a_trunk_either(residual):
    plan = residual.plan(flags(residual, 0, 1)).to_dict()
    for name, dims in plan["removed"].items():
        dims.update({dim: [0, 1, 2] for dim, ids in dims.items() if ids == [0, 1]})
        plan["removed"][name] = dims
    with pytest.raises(PlanError, match="removes every channel of stem"):
        residual.removed_by(PruningPlan.from_dict(plan))


def test_a_branch_with_a_way_around_it_may_go(residual):
    plan = residual.plan(flags(residual, 3, 4, 5, 6))
    assert plan.removed["inner.weight"] == {0: (0, 1, 2, 3)}


def test_a_plan_of_another_length(residual):
    with pytest.raises(PlanError, match=r"a flag for each of 7 groups, got shape \(6,\)"):
        residual.plan(np.zeros(6, dtype=bool))


def change(plan, name, dim, indices):
    data = plan.to_dict()
    data["removed"].setdefault(name, {})[str(dim)] = indices
    if not indices:
        del data["removed"][name][str(dim)]
    return PruningPlan.from_dict(data)


@pytest.mark.parametrize("name", ["stem.weight", "join.bias", "head.weight"])
def test_a_plan_that_forgets_a_member_is_refused(residual, name):
    plan = residual.plan(flags(residual, 1))
    dim = next(iter(plan.removed[name]))
    with pytest.raises(PlanError, match=f"coupled channels of {name} along dimension {dim} only in part"):
        residual.removed_by(change(plan, name, dim, []))


def test_a_plan_for_frozen_channels_is_refused(residual):
    plan = residual.plan(flags(residual, 1))
    for name, dim in (("head.weight", 0), ("stem.weight", 1), ("stem.weight", 2)):
        with pytest.raises(PlanError, match=f"{name} along dimension {dim} that cannot be removed|which has 1"):
            residual.removed_by(change(plan, name, dim, [1]))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"nothing": {0: (0,)}}, "names nothing, which the model does not have"),
        ({"stem.weight": {0: (99,)}}, "removes index 99 of stem.weight"),
        ({"stem.weight": {0: (-1,)}}, "removes index -1 of stem.weight"),
        ({"stem.bias": {3: (0,)}}, "cuts stem.bias along dimension 3"),
    ],
)
def test_a_plan_for_another_model_is_an_error_of_the_plan(residual, removed, message):
    with pytest.raises(PlanError, match=message):
        residual.removed_by(PruningPlan(removed))


def test_cuts_of_a_value(residual, sketch):
    removed = flags(residual, 0, 4)
    assert residual.cuts(sketch.values["conv2d_1"], removed)[1].tolist() == [True, False, True, True]
    assert residual.cuts(sketch.values["add_4"], removed)[1].tolist() == [False, True, True]
    assert residual.cuts(sketch.values["conv2d_6"], removed) == {}


def test_cost_of_the_slim_network(residual):
    kept = ~flags(residual, 0, 4, 5)
    assert residual.cost.macs(kept) == 16 * (3 * 2 + 2 * 2 + 2 * 2 + 2 * 2)
    assert residual.cost.params(kept) == (6 + 2) + (4 + 2) + (4 + 2) + (4 + 2)


def test_networkx_view(residual):
    graph = residual.to_networkx()
    assert nx.is_bipartite(nx.Graph(graph))
    assert graph.nodes[("set", 0)] == {"name": "stem", "channels": 3, "exact": True}
    assert graph.nodes[("parameter", "inner.weight")] == {"shape": (4, 3, 1, 1)}
    edges = {(*sorted((a, b), reverse=True), d["dim"]): d["each"] for a, b, d in graph.edges(data=True)}
    assert edges[(("set", 1), ("parameter", "join.weight"), 1)] == 1
    assert graph.number_of_edges() == sum(len(s.members) for s in residual.sets)
    # the layers between two sets are the parameters that both run through
    shared = set(graph[("set", 0)]) & set(graph[("set", 1)])
    assert shared == {("parameter", "inner.weight"), ("parameter", "join.weight")}


def test_sets_tell_structure_from_structure(sketch):
    """Channels 0 and 1 feed one layer, 2 and 3 another: same parameters, other members."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    a = sketch.call("slice", (1, 2, 4, 4), input=x, dim=1, start=0, end=2)
    b = sketch.call("slice", (1, 2, 4, 4), input=x, dim=1, start=2, end=4)
    graph = sketch.graph(sketch.conv(a, "a", 2), sketch.conv(b, "b", 2))
    assert [(s.groups.tolist(), s.name) for s in graph.sets] == [([0, 1], "stem"), ([2, 3], "stem")]


def test_sets_tell_counts_apart(sketch):
    """Three rows of a weight belong to one group, one to another."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    first = sketch.call("slice", (1, 1, 4, 4), input=x, dim=1, start=0, end=1)
    y = sketch.call("cat", (1, 6, 4, 4), tensors=[first, first, x], dim=1)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert sorted(len(s.groups) for s in graph.sets) == [3]  # the single channel stays: its slice would be empty
    assert graph.n_groups == 3


def test_unknown_operators_freeze_what_they_touch(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    y = sketch.call("mystery", (1, 4, 4, 4), input=x)
    graph = sketch.graph(sketch.conv(sketch.conv(y, "body", 4), "head", 2))
    assert [s.name for s in graph.sets] == ["body"]
    reasons = {f.reason: f.parameters for f in graph.frozen}
    assert reasons["no rule for this operator: mystery at line 1"] == ("stem.weight", "stem.bias")


def test_channels_that_a_rule_loses_are_frozen(sketch):
    """An embedding reads its indices; whatever channels they had end there."""
    x = sketch.linear(sketch.input(2, 3), "fc", 4)
    y = sketch.call("embedding", (2, 4, 5), weight=sketch.parameter("table", 9, 5), indices=x)
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert [s.name for s in graph.sets] == ["head"] or graph.n_groups == 5
    assert "its channels end in embedding at line 1" in [f.reason for f in graph.frozen]


def test_arguments_that_only_give_a_precision_freeze_nothing(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    fill = sketch.call("new_zeros", (1, 1, 4, 4), input=x, size=[1, 1, 4, 4])
    y = sketch.call("cat", (1, 5, 4, 4), tensors=[x, fill], dim=1)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert graph.n_groups == 4


def test_what_names_no_channel_holds_nothing(sketch):
    """A bias table over heads and tokens, added to attention weights: its pinned labels do not spread to channels."""
    q = sketch.linear(sketch.input(2, 5, 3), "q", 4)
    table = sketch.parameter("table", 5, 4)
    weights = sketch.call("add", (2, 5, 4), input=sketch.input(2, 5, 4), other=table)
    y = sketch.call("einsum", (2, 4, 4), equation="btc,btd->bcd", tensors=[q, weights])
    y = sketch.call("flatten", (2, 16), input=y)
    graph = sketch.graph(sketch.linear(y, "head", 2))
    assert [s.name for s in graph.sets] == ["q"]
    assert not any("table" in f.parameters for f in graph.frozen)


def test_parameters_that_nothing_reads_are_no_channels(sketch):
    sketch.parameter("unused", 4, 5)
    graph = sketch.graph(sketch.conv(sketch.conv(sketch.input(1, 3, 4, 4), "a", 4), "b", 2))
    assert graph.n_groups == 4
    assert not any(name == "unused" for name, _ in graph.axes)


def test_asking_for_a_shape_freezes_nothing(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "a", 4)
    sketch.onnx("Shape", (4,), input=x)
    assert sketch.graph(sketch.conv(x, "b", 2)).n_groups == 4


def test_a_tensor_whose_channels_became_one_group_is_frozen(sketch):
    """Few groups shuffled against each other: everything hangs together, and cannot go."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    y = sketch.call("flip", x.shape, input=x, dims=[1])
    z = sketch.call("roll", x.shape, input=x, shifts=[1], dims=[2])
    swapped = sketch.call(
        "cat",
        (1, 4, 4, 4),
        tensors=[
            sketch.call("slice", (1, 2, 4, 4), input=z, dim=1, start=2, end=4),
            sketch.call("slice", (1, 2, 4, 4), input=z, dim=1, start=0, end=2),
        ],
        dim=1,
    )
    total = sketch.call("add", x.shape, input=y, other=x)
    total = sketch.call("add", x.shape, input=total, other=swapped)
    graph = sketch.graph(sketch.conv(total, "head", 2))
    assert graph.n_groups == 0
    assert any("its channels can only go all at once" in f.reason for f in graph.frozen)


def test_empty_network(sketch):
    graph = sketch.graph(sketch.relu(sketch.input(1, 3)))
    assert graph.n_groups == 0
    assert graph.sets == ()
    assert graph.groups == ()
    assert graph.plan(graph.all_kept()).removed == {}
    assert graph.to_networkx().number_of_nodes() == 0

"""Which sets of channels may go as a whole, and what becomes of the operators around them."""

import networkx as nx
import numpy as np
import pytest

from graphprune.passes.channels.branches import Fate
from graphprune.passes.errors import PlanError


def block(sketch, *kinds: str, join: str = "add"):
    """stem -> [inner -> `kinds` -> outer] joined with stem -> head."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    y = sketch.conv(x, "inner", 4)
    y = sketch.conv(sketch.relu(y), "outer", 3)
    for kind in kinds:
        y = sketch.call(kind, y.shape, input=y)
    y = sketch.call(join, x.shape, input=x, other=y)
    return sketch.graph(sketch.conv(y, "head", 2))


def emptied(graph, *names: str):
    return np.isin(graph.set_of, [s.index for s in graph.sets if s.name in names])


def fates(graph, *names: str) -> dict[str, Fate]:
    found = graph.fates(emptied(graph, *names))
    return {graph.flow.steps[number].op.name: fate for number, fate in found.items()}


def test_an_emptied_branch_is_a_constant_added_to_its_bypass(sketch):
    graph = block(sketch, "sigmoid")
    assert fates(graph, "inner") == {
        "conv2d_1": Fate.GONE,
        "relu_2": Fate.GONE,
        "conv2d_3": Fate.HEAD,
        "sigmoid_4": Fate.CONSTANT,
        "add_5": Fate.JOIN,
    }


@pytest.mark.parametrize("join", ["add", "sub", "mul", "maximum"])
def test_every_join_that_treats_positions_alone(sketch, join):
    graph = block(sketch, join=join)
    assert fates(graph, "inner")[f"{join}_4"] is Fate.JOIN
    assert next(s for s in graph.sets if s.name == "inner").bypassed


def test_an_operator_that_mixes_positions_keeps_the_branch(sketch):
    """Zero padding makes the border of a pooled constant differ."""
    graph = block(sketch, "avg_pool2d")
    assert not any(s.bypassed for s in graph.sets)
    with pytest.raises(PlanError, match="removes every channel of inner: keep at least one"):
        graph.plan(emptied(graph, "inner"))


def test_a_chain_without_a_bypass_cannot_go(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    x = sketch.conv(sketch.relu(x), "body", 4)
    graph = sketch.graph(sketch.conv(sketch.relu(x), "head", 2))
    assert not any(s.bypassed for s in graph.sets)


def test_a_branch_that_is_an_output_cannot_go(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    y = sketch.conv(sketch.relu(sketch.conv(x, "inner", 4)), "outer", 3)
    graph = sketch.graph(sketch.call("add", x.shape, input=x, other=y), y)
    assert [s.name for s in graph.sets] == ["inner"]
    assert not graph.sets[0].bypassed


def test_batch_statistics_of_a_constant_are_none(sketch):
    """Inference with batch statistics is no affine map: a branch that ends in it is not folded."""
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    y = sketch.conv(sketch.relu(sketch.conv(x, "inner", 4)), "outer", 3)
    given = {n: sketch.parameter(n, 3) for n in ("weight", "bias")}
    y = sketch.call("batch_norm", y.shape, input=y, **given)
    graph = sketch.graph(sketch.conv(sketch.call("add", x.shape, input=x, other=y), "head", 2))
    assert not any(s.bypassed for s in graph.sets)


def test_a_set_that_is_never_all_of_a_tensor_may_go(sketch):
    """Both parts of a concatenation, but not both at once."""
    x = sketch.input(1, 3, 4, 4)
    y = sketch.call("cat", (1, 7, 4, 4), tensors=[x, sketch.conv(x, "body", 4)], dim=1)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    # the part by itself is a tensor, which joining does not fold away
    assert not graph.sets[0].bypassed


def two_branches(sketch):
    """Query and key of an attention: neither can go alone."""
    x = sketch.input(1, 5, 3)
    q, k, v = (sketch.linear(x, name, 4) for name in ("q", "k", "v"))
    k = sketch.call("transpose", (1, 4, 5), input=k, dim0=1, dim1=2)
    weights = sketch.call("softmax", (1, 5, 5), input=sketch.call("bmm", (1, 5, 5), input=q, other=k), dim=-1)
    y = sketch.linear(sketch.call("bmm", (1, 5, 4), input=weights, other=v), "out", 6)
    y = sketch.call("add", (1, 5, 6), input=y, other=sketch.linear(x, "skip", 6))
    return sketch.graph(sketch.linear(y, "head", 2))


def test_what_only_a_dead_branch_reads_goes_with_it(sketch):
    graph = two_branches(sketch)
    assert {s.name: s.bypassed for s in graph.sets} == {"q": False, "v": True, "out": False}
    removed = graph.with_unreached(emptied(graph, "v"))
    assert removed.tolist() == emptied(graph, "q", "v").tolist()


def test_a_plan_that_takes_along_the_unreached_is_accepted_again(sketch):
    """The product of query and key has lost all its channels, and nothing reads it any more."""
    graph = two_branches(sketch)
    plan = graph.plan(emptied(graph, "v"))
    assert "q.weight" in plan.removed
    assert graph.removed_by(plan).tolist() == emptied(graph, "q", "v").tolist()
    with pytest.raises(PlanError, match="every channel of q"):
        graph.plan(emptied(graph, "q"))


def test_one_of_two_parallel_branches_or_both(sketch):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 3)
    a = sketch.conv(sketch.relu(sketch.conv(x, "a1", 4)), "a2", 3)
    b = sketch.conv(sketch.relu(sketch.conv(x, "b1", 4)), "b2", 3)
    y = sketch.call("add", x.shape, input=sketch.call("add", x.shape, input=a, other=b), other=x)
    graph = sketch.graph(sketch.conv(y, "head", 2))
    assert {s.name: s.bypassed for s in graph.sets} == {"stem": False, "a1": True, "b1": True}
    both = fates(graph, "a1", "b1")
    assert both["add_7"] is Fate.CONSTANT  # a constant plus a constant
    assert both["add_8"] is Fate.JOIN
    assert fates(graph, "a1")["add_7"] is Fate.JOIN


def test_two_branches_that_are_each_others_bypass_cannot_both_go(sketch):
    x = sketch.input(1, 3, 4, 4)
    a = sketch.conv(sketch.relu(sketch.conv(x, "a1", 4)), "a2", 3)
    b = sketch.conv(sketch.relu(sketch.conv(x, "b1", 4)), "b2", 3)
    y = sketch.call("add", a.shape, input=a, other=b)
    graph = sketch.graph(sketch.call("max_pool2d", (1, 3, 2, 2), input=y))
    assert {s.name: s.bypassed for s in graph.sets} == {"a1": True, "b1": True}
    with pytest.raises(PlanError, match="cannot go together"):
        graph.plan(emptied(graph, "a1", "b1"))


def test_the_flow_is_a_graph_of_operators(sketch):
    flow = block(sketch).flow.graph
    assert nx.is_directed_acyclic_graph(flow)
    assert next(flow.nodes[n]["kind"] for n in nx.topological_sort(flow)) == "conv2d"
    join = next(n for n in flow if flow.nodes[n]["kind"] == "add")
    assert {flow.nodes[n]["name"] for n in flow.predecessors(join)} == {"conv2d_0", "conv2d_3"}


def test_what_the_outputs_still_read_is_the_same_from_either_end(sketch):
    """Followed from the operators, up to the last one that went, or from the outputs through the whole network."""
    graph = block(sketch, "sigmoid", "relu")
    flow, number = graph.flow, len(graph.flow.steps)
    rng = np.random.default_rng(0)
    for _ in range(200):
        fates = {int(n): rng.choice([Fate.GONE, Fate.HEAD, Fate.JOIN]) for n in rng.choice(number, 2)}
        live = flow._live(fates)
        assert {n for n in range(number) if flow._is_read([n], fates)} == live

"""The comparison of masked and slim models can fail, and then names the node."""

import dataclasses

import numpy as np
import pytest
import torch
import zoo
from zoo import captured_of, first_of, traced

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import VerificationError
from graphprune.passes.fx.analyze import analyze, trace
from graphprune.passes.fx.compare import compare_outputs
from graphprune.passes.fx.outputs import difference, run
from graphprune.passes.fx.slim import mask, slim


def test_one_shifted_index_is_noticed_and_its_node_named():
    """An analysis that is off by one at one consumer: consistent in itself, and wrong."""
    model = zoo.build("SigmoidBias")
    graph = trace(model, model.example_inputs())
    key = ("conv2.weight", 1)
    graph.axes[key] = np.roll(graph.axes[key], 1)
    plan = graph.plan(first_of(graph, 0))
    with pytest.raises(VerificationError, match=r"differ first at node conv2d_1 \(conv2 \(norms.py:\d+\)\)") as caught:
        slim(model, plan, model.example_inputs(), graph=graph)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_wrong_size_is_noticed_and_its_node_named():
    graph = analyze(captured_of("Csp"))
    front = graph.front_end
    name, (rule, binding, op) = next((n, o) for n, o in front.ops.items() if o[0].name == "split")
    wrong = dataclasses.replace(rule, resize=lambda op, cut: {"split_sizes": [4, 2]})
    front.ops[name] = (wrong, binding, op)  # [3, 3] would be right
    plan = graph.plan(first_of(graph, 0, 1))
    with pytest.raises(VerificationError, match=r"differ first at node getitem \(getitem\)|node conv2d_1 \(blocks.0.0"):
        slim(front.module, plan, graph=graph)


def cut_producers_alone(model, graph, removed):
    """What a naive mask does: the channels' own weights and biases, and not what reads them."""
    plan = graph.plan(removed)
    producers = {
        name: {0: dims[0]} for name, dims in plan.removed.items() if 0 in dims and not name.startswith("classifier")
    }
    return mask(model, PruningPlan(producers, {n: plan.shapes[n] for n in producers}))


@pytest.mark.parametrize(("name", "naive_is_right"), [("Plain", True), ("SigmoidBias", False)])
def test_a_naive_cut_of_producers_alone_would_fail_where_zero_does_not_stay_zero(name, naive_is_right):
    model, graph = traced(name)
    removed = first_of(graph, 0, 1)
    slimmed = slim(model, graph.plan(removed), model.example_inputs(), graph=graph, tolerance=1e-9)
    naive = cut_producers_alone(model, graph, removed)
    inputs = model.example_inputs()
    assert (difference(run(naive, inputs)[0], run(slimmed, inputs)[0]) < 1e-9) == naive_is_right


def test_a_tolerance_is_kept():
    a, b = [torch.tensor([1.0, 100.0])], [torch.tensor([1.005, 100.0])]
    assert compare_outputs(a, b, 1e-4, "this") == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(VerificationError, match=r"this differs from the masked model by 5e-05 \(allowed 1e-05\)"):
        compare_outputs(a, b, 1e-5, "this")
    with pytest.raises(VerificationError, match="gives 2 outputs, the masked model 1"):
        compare_outputs(a, [*b, *b], 1.0, "this")

"""Branches that go as a whole."""

import numpy as np
import pytest
import torch
from zoo import captured_of, traced

from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.outputs import difference, run
from graphprune.passes.fx.slim import mask, slim


@pytest.mark.parametrize("name", ["Residual", "InvertedResidual", "SqueezeExcite", "NonLocal", "AttentionSdpa"])
def test_a_whole_branch_goes(name):
    """The branch is folded into the constant that it computes, whatever its operators (add, add_, mul)."""
    model, graph = traced(name)
    branch = next(s for s in graph.sets if s.bypassed)
    plan = graph.plan(np.isin(np.arange(graph.n_groups), branch.groups))
    removed = graph.removed_by(plan)
    assert removed[branch.groups].all()
    captured = captured_of(name)
    slimmed = slim(captured, plan, graph=graph, tolerance=1e-9)
    for batch in (1, 3):
        inputs = model.example_inputs(batch)
        assert difference(run(mask(model, plan), inputs)[0], run(slimmed, inputs)[0]) < 1e-9
    convolutions = [sum("conv" in n.name or "linear" in n.name for n in m.graph.nodes) for m in (captured, slimmed)]
    assert convolutions[1] < convolutions[0]
    assert all(0 not in p.shape for p in slimmed.parameters())
    again = analyze(slimmed)
    assert again.cost.macs(again.all_kept()) == graph.cost.macs(~removed)


@pytest.mark.parametrize(("shift", "left"), [(0.5, 1), (0.0, 0)])
def test_of_a_branch_that_adds_nothing_nothing_is_left(shift, left):
    """The add goes, and the relu behind it, as what it reads comes from a relu."""
    model, _ = traced("Residual")
    with torch.no_grad():
        norm = model.layer1[0].bn2
        norm.bias.fill_(shift)
        norm.running_mean.zero_()
    captured = capture(model, model.example_inputs())
    graph = analyze(captured)
    inner = next(s for s in graph.sets if s.name == "layer1.0.conv1")
    plan = graph.plan(np.isin(np.arange(graph.n_groups), inner.groups))
    slimmed = slim(captured, plan, graph=graph, tolerance=1e-9)

    def count(module, kind):
        return sum(node.op == "call_function" and kind in str(node.target) for node in module.graph.nodes)

    for kind, inside in (("conv2d", 2), ("batch_norm", 2), ("add", 1 - left), ("relu", 2 - left)):
        assert count(captured, kind) - count(slimmed, kind) == inside, kind
    inputs = model.example_inputs(3)
    assert difference(run(mask(model, plan), inputs)[0], run(slimmed, inputs)[0]) < 1e-9


def test_a_branch_takes_along_what_only_it_reads():
    """Of a non-local block, query and key are computed for nothing once the values are gone."""
    _, graph = traced("NonLocal")
    values = next(s for s in graph.sets if s.name == "g")
    removed = graph.removed_by(graph.plan(np.isin(np.arange(graph.n_groups), values.groups)))
    theta = next(s for s in graph.sets if s.name == "theta")
    assert removed[theta.groups].all()
    assert not theta.bypassed
    slimmed = slim(captured_of("NonLocal"), graph.plan(removed))
    assert not [n for n in slimmed.graph.nodes if "softmax" in n.name or "bmm" in n.name]

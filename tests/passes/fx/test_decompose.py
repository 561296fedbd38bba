"""Operators without a rule that are made of others."""

import copy

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.decompose import decompose
from graphprune.passes.fx.operators import find_rule
from graphprune.passes.fx.slim import mask, slim


def kinds(module) -> set[str]:
    return {str(node.target) for node in module.graph.nodes if node.op == "call_function"}


def test_parts_stand_where_the_operator_was_and_are_blamed_on_its_line():
    model, captured, graph = zoo.analyzed("Cells")
    assert graph.unknown == {}
    assert not any("_cell" in kind for kind in kinds(captured))
    parts = [node for node in captured.graph.nodes if "gru" in str(node.meta.get("nn_module_stack", ""))]
    assert {"aten.addmm.default", "aten.unsafe_split_with_sizes.default"} <= {str(node.target) for node in parts}
    inputs = model.example_inputs(3)
    assert torch.equal(model(*inputs), captured(*inputs))


def test_gradients_go_through_the_parts():
    model, captured, _ = zoo.analyzed("Cells")
    model, captured = copy.deepcopy(model), copy.deepcopy(captured).train()
    inputs = model.example_inputs(3)
    for module in (model, captured):
        module(*inputs).square().sum().backward()
    found = dict(captured.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


class Distances(nn.Module):
    """`cdist` is made of an operator that has no rule either."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(torch.cdist(y, y[:, :3]))


def test_what_is_made_of_unknown_parts_stays_and_is_named():
    graph = analyze(capture(Distances().eval(), (torch.randn(2, 5, 4),)))
    assert graph.unknown == {"aten.cdist.default": 1}
    assert any(f.reason.startswith("no rule for this operator: aten.cdist.default at ") for f in graph.frozen)


def test_operators_with_rules_are_left_alone():
    captured = capture(Distances().eval(), (torch.randn(2, 5, 4),))
    before = [str(node.target) for node in captured.graph.nodes]
    decompose(captured, lambda target: find_rule(target) is not None)
    assert [str(node.target) for node in captured.graph.nodes] == before


class Autocast(nn.Module):
    """A block that keeps its precision, as attention layers have."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        with torch.autocast("cpu", enabled=self.enabled, dtype=torch.bfloat16):
            x = self.middle(x).relu()
        return self.last(x.float())


def test_a_block_without_autocast_is_its_content():
    torch.manual_seed(0)
    model, inputs = Autocast(enabled=False).eval(), (torch.randn(3, 4),)
    captured = capture(model, inputs)
    graph = analyze(captured)
    assert graph.unknown == {}
    assert [len(group_set.groups) for group_set in graph.sets] == [6, 8]
    assert torch.equal(captured(*inputs), model(*inputs))
    plan = graph.plan(np.isin(np.arange(graph.n_groups), [0, 7]))
    torch.testing.assert_close(slim(model, plan, inputs, graph=graph)(*inputs), mask(model, plan)(*inputs))


def test_a_block_with_autocast_stays_what_it_is():
    graph = analyze(capture(Autocast(enabled=True).eval(), (torch.randn(3, 4),)))
    assert list(graph.unknown) == ["wrap_with_autocast"]


class EvenParts(nn.Module):
    """Parts of a dimension whose size varies, beside channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.first(torch.cat([x, -x])).chunk(2)
        return self.last(left.relu() - right.relu())


def test_a_batch_that_is_split_keeps_its_channels_free():
    torch.manual_seed(0)
    model, inputs = EvenParts().eval(), (torch.randn(3, 4),)
    captured = capture(model, inputs)
    assert "aten.chunk.default" in kinds(captured)
    graph = analyze(captured)
    assert graph.n_groups == 6
    plan = graph.plan(np.arange(6) < 3)
    more = torch.randn(5, 4)
    for source in (model, captured):
        torch.testing.assert_close(slim(source, plan, inputs, graph=graph)(more), mask(source, plan)(more))


@pytest.mark.parametrize("name", ["Cells", "Composites"])
def test_what_was_taken_apart_is_slim_and_exact(name):
    _, _, graph = zoo.analyzed(name)
    assert graph.unknown == {}
    assert graph.n_groups > 0
    assert graph.exact.all()

"""Sizes that a graph leaves free: which they are, what else it takes, and what is kept of them."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import graphprune as gp
from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.capture import at_sizes, capture, module_of
from graphprune.passes.fx.sizes import fixed_sizes, free_sizes, has_sizes_of, inputs_of_other_sizes, sizes_of

FREE = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}


class Dense(nn.Module):
    """Goes down and up again, so that sizes have to be even."""

    def __init__(self, is_any: bool = True):
        super().__init__()
        self.is_any = is_any
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        y = self.up(torch.relu(self.down(x)))
        return F.interpolate(y, size=x.shape[-2:]) if self.is_any else y + x


def program(free=FREE, is_any=True, size=(16, 24)):
    x = torch.rand(2, 3, *size)
    return torch.export.export(Dense(is_any).eval(), (x,), dynamic_shapes=None if free is None else (free,))


def graph_of(exported):
    return module_of(exported).graph


def test_free_sizes_are_told_from_fixed_ones():
    assert free_sizes(graph_of(program())) == [(0, 2, 3)]
    assert free_sizes(graph_of(program({0: Dim.AUTO}))) == [(0,)]
    assert free_sizes(graph_of(program(None))) == [()]
    assert sizes_of(graph_of(program())) == [(2, 3, 16, 24)]
    assert free_sizes(graph_of(program(size=(16, 16)))) == [(0, 2, 3)]  # equal ones are not the same


def test_what_a_graph_does_not_take_is_said():
    graph = graph_of(program({0: Dim.AUTO, 2: Dim.AUTO}))
    assert fixed_sizes(graph, (torch.rand(7, 3, 20, 24),)) == ""
    assert fixed_sizes(graph, (torch.rand(2, 3, 16, 20),)) == "input 0 is ?x3x?x24, 2x3x16x20 was given"
    assert fixed_sizes(graph, (torch.rand(3, 16, 24),)) == "input 0 is ?x3x?x24, 3x16x24 was given"
    assert has_sizes_of(graph, (torch.rand(5, 3, 16, 24),))
    assert not has_sizes_of(graph, (torch.rand(2, 3, 20, 24),))


def test_other_sizes_are_tried_from_near_to_far():
    x = torch.rand(1, 3, 16, 24)
    shapes = [tuple(case[0].shape) for case in inputs_of_other_sizes(graph_of(program()), (x,))]
    assert shapes == [(1, 3, 17, 26), (1, 3, 48, 88), (1, 3, 32, 72)]
    assert [*inputs_of_other_sizes(graph_of(program({0: Dim.AUTO})), (x,))] == []
    assert [*inputs_of_other_sizes(torch.fx.symbolic_trace(nn.Linear(2, 2)).graph, (x,))] == []


def test_costs_are_those_of_the_sizes_given():
    graph = gp.trace(program())
    at_16 = graph.cost.macs(graph.all_kept())
    graph = gp.trace(program(), (torch.rand(1, 3, 32, 24),))
    assert graph.cost.macs(graph.all_kept()) == 2 * at_16


def test_a_captured_module_at_other_sizes_is_the_same_module(caplog):
    captured = capture(program())
    assert at_sizes(captured, (torch.rand(5, 3, 16, 24),)) is captured
    other = at_sizes(captured, (torch.rand(2, 3, 32, 40),))
    x = torch.rand(3, 3, 20, 28)
    assert torch.allclose(other(x), captured(x), atol=1e-6)
    assert free_sizes(other.graph) == [(0, 2, 3)]
    assert sizes_of(other.graph) == [(2, 3, 32, 40)]
    assert dict(other.named_parameters()).keys() == dict(captured.named_parameters()).keys()
    assert [
        node.meta.get("nn_module_stack") for node in other.graph.nodes if node.target == torch.ops.aten.relu.default
    ]
    assert "fixed" not in caplog.text
    with pytest.raises(CaptureError, match=r"does not take these inputs: input 0 is \?x3x\?x\?"):
        at_sizes(captured, (torch.rand(2, 1, 16, 24),))


def test_statistics_that_stay_still_do_so_after_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0)).eval()
    momenta = [
        [
            node.args[6]
            for node in at_sizes(captured, (torch.rand(2, 3, 9, 9),)).graph.nodes
            if "batch_norm" in node.name
        ]
        for captured in (
            capture(net, (torch.rand(2, 3, 9, 9),)),
            capture(torch.export.export(net, (torch.rand(2, 3, 8, 8),), dynamic_shapes=(FREE,))),
        )
    ]
    assert momenta == [[0.0], [0.1]]  # a program does not tell them from those without a momentum


def test_a_slim_model_takes_other_sizes_too_and_so_does_its_archive(tmp_path):
    exported = program(is_any=False)
    slim = gp.slim(exported, gp.plan(gp.trace(exported), ratio=0.5))
    gp.save(slim, tmp_path / "slim.pt2")
    loaded = gp.load(tmp_path / "slim.pt2")
    assert free_sizes(loaded.graph) == [(0, 2, 3)]
    for size in ((16, 24), (20, 36), (8, 8)):
        x = torch.rand(3, 3, *size)
        assert torch.equal(loaded(x), slim(x))


def test_sizes_that_get_lost_are_said(tmp_path, caplog, monkeypatch):
    """What torch.export refuses, or fixes without a word."""
    captured = capture(program())
    monkeypatch.setattr("graphprune.passes.fx.program.free_sizes", lambda graph: [(0,)])
    gp.save(captured, tmp_path / "m.pt2")
    assert "the saved model takes one height and width" in caplog.text
    at_sizes(captured, (torch.rand(2, 3, 32, 40),))
    assert "sizes that were free are fixed for these inputs" in caplog.text

"""The torch front end of the analysis: arguments, source lines, what is frozen and why."""

import operator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.analyze import bind_arguments, find_rule, module_path, source_line, trace

aten = torch.ops.aten


def reasons(graph) -> dict[str, tuple[str, ...]]:
    return {f.reason: f.parameters for f in graph.frozen}


def test_rules_are_found_by_overload_then_by_name_and_in_place_alike():
    assert find_rule(aten.max.other)[0].name == "maximum"
    assert find_rule(aten.max.dim)[0].name == "mean or extremum"
    assert find_rule(aten.add_.Tensor)[0].name == find_rule(aten.add.Scalar)[0].name == "addition"
    assert find_rule(aten.relu_.default)[0] is find_rule(aten.relu.default)[0]
    assert find_rule(aten._fft_r2c.default) is None
    assert find_rule(torch.ops.zoo.blur.default) is None
    assert find_rule(operator.add) is None


def test_arguments_are_bound_by_name_with_defaults():
    graph = zoo.analyzed("Plain")[1].graph
    conv = next(n for n in graph.nodes if n.target is aten.conv2d.default)
    bound = bind_arguments(conv)
    assert list(bound) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert bound["padding"] == [1, 1]
    assert bound["groups"] == 1
    assert bound["input"].op == "placeholder"


def test_source_lines_are_the_users():
    graph = zoo.analyzed("Residual")[1].graph
    conv = [n for n in graph.nodes if n.target is aten.conv2d.default][1]
    assert module_path(conv) == "layer1.0.conv1"
    path, _, line = source_line(conv).partition(" ")
    assert path == "layer1.0.conv1"
    name, number = line.strip("()").split(":")
    assert name == "backbones.py"
    source = Path(zoo.backbones.__file__).read_text().splitlines()[int(number) - 1]
    assert "self.conv1" in source


def test_unknown_operators_are_named_counted_and_frozen():
    _model, _, graph = zoo.analyzed("Unknown")
    assert graph.unknown == {"zoo.blur.default": 1}
    found = [r for r in reasons(graph) if r.startswith("no rule for this operator: zoo.blur.default at interfaces.py:")]
    assert len(found) == 1
    assert reasons(graph)[found[0]] == ("body.0.weight", "body.1.weight", "body.1.bias")
    assert next(f for f in graph.frozen if f.reason == found[0]).channels == 8


def test_frozen_channels_have_a_reason_with_operator_and_line():
    _model, _, graph = zoo.analyzed("EcaGate")
    found = [r for r in reasons(graph) if r.startswith("mixes positions: aten.conv1d.default at eca (joins.py:")]
    assert found
    assert "stem.0.weight" in reasons(graph)[found[0]]


def test_outputs_are_frozen():
    frozen = reasons(zoo.analyzed("TwoOutputs")[2])["is an output: the output of the model"]
    assert set(frozen) == {"body.0.weight", "body.1.weight", "body.1.bias", "head.2.weight", "head.2.bias"}


def test_inputs_are_noted_for_later_checks():
    model = zoo.build("TwoInputs", torch.float32)
    plan = trace(model, model.example_inputs()).plan(np.zeros(6, dtype=bool))
    assert plan.inputs == ({"shape": [2, 3, 8, 8], "dtype": "float32"}, {"shape": [2, 4], "dtype": "float32"})


def test_costs_are_those_of_one_sample():
    model = zoo.build("Plain")
    macs = [trace(model, model.example_inputs(batch)).cost.macs(np.ones(24, dtype=bool)) for batch in (1, 2, 5)]
    assert macs == [64 * 27 * 6 + 16 * 54 * 8 + 32 * 10 + 10 * 5] * 3


def test_a_literal_in_the_models_code_freezes_what_it_meets():
    """No plan can reach it in the module: masking would leave it standing where the graph's copy is cut."""
    _model, _, graph = zoo.analyzed("Literal")
    assert not [name for name, _ in graph.axes if "lifted" in name]
    reason = "meets a tensor that cannot be cut: aten.mul.Tensor at interfaces.py:"
    assert any(found.startswith(reason) for found in reasons(graph))


class Between(nn.Module):
    """A sum over channels after `between`, which is exact where that keeps zero at zero."""

    def __init__(self, between):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.between = between

    def forward(self, x):
        return self.between(self.conv(x)).sum(1)


def _raised(y):
    limit = torch.tensor(0.0)
    view = limit.view(1)
    limit.add_(1)
    return torch.maximum(y, view)


@pytest.mark.parametrize(
    ("between", "exact"),
    [
        (lambda y: torch.maximum(y, torch.tensor(0.0)), True),
        (lambda y: torch.maximum(y, torch.tensor(1.0)), False),
        (lambda y: torch.minimum(y.relu(), torch.tensor(6.0)), True),
        (lambda y: torch.clamp(y, min=0), True),
        (lambda y: torch.where(y > 0, y, 0.0), True),
        (lambda y: torch.where(y > 0, y, torch.tensor(0.0)), True),
        (lambda y: torch.where(y > 0, y, torch.zeros_like(y)), True),
        (lambda y: torch.where(y > 0, y, torch.ones_like(y)), False),
        (_raised, False),
    ],
)
def test_numbers_in_the_models_code_keep_zero_or_do_not(between, exact):
    graph = trace(Between(between).eval(), (torch.randn(2, 3, 4, 4),))
    assert graph.n_groups == 4
    assert graph.exact.all() == exact


class InPlace(nn.Module):
    """A convolution, something in place, and a sum over channels of what was changed."""

    def __init__(self, change) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        self.change(x)
        return x.sum(1)


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        (lambda x: x.relu_(), True),
        (lambda x: x.sigmoid_(), False),
        (lambda x: x[:, :, 1:].sigmoid_(), False),
        (lambda x: x[:, :, 1:].relu_(), True),
        (lambda x: x.flatten(2).add_(1.0), False),
        (lambda x: x.permute(0, 2, 3, 1)[0].sigmoid_(), False),
        (lambda x: x.chunk(2, 2)[1].exp_(), False),
        (lambda x: x.clone().sigmoid_(), True),
        (lambda x: x[:, :, 1:].copy_(x[:, :, 1:].sigmoid()), False),
        (lambda x: x[:, :, 1:].mul_(3.0), True),
    ],
)
def test_changes_in_place_are_seen_through_views(change, exact):
    graph = trace(InPlace(change), (torch.randn(2, 3, 4, 4),))
    assert graph.n_groups == 6
    assert graph.exact.all() == exact


def test_tied_tensors_go_by_their_first_name_and_are_counted_once():
    model, _, graph = zoo.analyzed("TiedWeights")
    assert ("first.weight", 0) in graph.axes
    assert ("second.weight", 0) not in graph.axes
    assert graph.cost.params(graph.all_kept()) == sum(p.numel() for p in model.parameters())


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


def test_sizes_that_depend_on_data_are_an_error_that_says_so():
    with pytest.raises(CaptureError, match="depends on the values of its input"):
        trace(Shifted(), (torch.randn(4, 3),))


class Frozen(nn.Module):
    """Buffers without a batch: a positional embedding added to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        return self.fc2(F.gelu(self.fc1(x[:, 0])))


def test_embeddings_of_positions_and_class_tokens_go_with_their_channels():
    graph = trace(Frozen(), (torch.randn(2, 3, 8, 8),))
    members = {(m.parameter, m.dim) for m in graph.groups[0].members}
    assert {("position", 2), ("cls", 2), ("patch.weight", 0), ("fc1.weight", 1)} <= members
    assert [len(s.groups) for s in graph.sets] == [8, 6]

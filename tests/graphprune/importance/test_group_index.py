import numpy as np
import pytest
import torch
from torch import nn

from graphprune.importance.group_index import GroupIndex, shrink_factors


class Residual(nn.Module):
    """stem -> relu -> x + conv(x) -> two convolutions -> linear: conv `mix` runs from the trunk into itself."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=True)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 2)


TRUNK, INNER, NONE = np.arange(4), np.arange(4, 10), np.full(8, -1)
AXES = {
    ("stem.weight", 0): TRUNK,
    ("stem.weight", 1): NONE[:3],
    ("stem.bias", 0): TRUNK,
    ("norm.weight", 0): TRUNK,
    ("norm.bias", 0): TRUNK,
    ("norm.running_mean", 0): TRUNK,
    ("mix.weight", 0): TRUNK,
    ("mix.weight", 1): TRUNK,
    ("inner.weight", 0): INNER,
    ("inner.weight", 1): TRUNK,
    ("head.weight", 1): INNER,
}


def element_masks(model):
    """For every group and parameter, which elements belong to it: written the slow way."""
    masks = [{name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()} for _ in range(10)]
    for (name, dim), ids in AXES.items():
        for index, group in enumerate(ids):
            if group >= 0 and name in masks[group]:
                masks[group][name].transpose(0, dim)[index] = True
    return masks


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Residual()
    for p in model.parameters():
        nn.init.normal_(p)
        p.grad = torch.randn_like(p)
    return model


@pytest.fixture
def index(model):
    return GroupIndex(dict(model.named_parameters()), AXES, 10)


def test_only_parameters_with_groups_are_members(index):
    assert index.names == [
        "stem.weight",
        "stem.bias",
        "norm.weight",
        "norm.bias",
        "mix.weight",
        "inner.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_a_function_of_the_weights_block_by_block_gives_what_it_gives_at_once(model, index, rows, monkeypatch):
    monkeypatch.setattr("graphprune.importance.group_index._BLOCK", rows * 9)
    weights = [p.detach() for p in index.parameters]
    torch.testing.assert_close(index.sums(weights, torch.exp), index.sums([w.exp() for w in weights]))
    torch.testing.assert_close(index.sizes, index.sums([torch.ones_like(w) for w in weights]))


def test_norms_sizes_and_slopes_equal_the_slow_way(model, index):
    masks = element_masks(model)
    for group in range(10):
        weights = torch.cat([p[masks[group][n]] for n, p in model.named_parameters()])
        gradients = torch.cat([p.grad[masks[group][n]] for n, p in model.named_parameters()])
        assert index.sizes[group] == len(weights)
        assert index.norms()[group] == pytest.approx(float(weights.detach().norm()), rel=1e-5)
        assert index.slopes()[group] == pytest.approx(float((weights * gradients).detach().sum()), rel=1e-4, abs=1e-5)


def test_an_element_in_one_group_twice_counts_once(index):
    # stem 3*9 + bias, gamma, beta; mix: 4*9 out + 4*9 in, 9 of them the same; inner: 6
    assert index.sizes[:4].tolist() == [27 + 3 + 36 + 36 - 9 + 6] * 4


def test_scaling_touches_members_only_and_multiplies_where_two_groups_meet(model, index):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    factors = torch.ones(10)
    factors[1], factors[5] = 0.5, 0.25
    index.scale_(factors)
    masks = element_masks(model)
    for name, p in model.named_parameters():
        expected = before[name].clone()
        if name == "mix.weight":
            expected[1] *= 0.5
            expected[:, 1] *= 0.5
        else:
            expected[masks[1][name]] *= 0.5
            expected[masks[5][name]] *= 0.25
        torch.testing.assert_close(p.detach(), expected)
    assert model.inner.weight[1, 1] == before["inner.weight"][1, 1] * 0.125


def test_scaling_by_zero_gives_exact_zeros_and_leaves_the_rest_bit_for_bit(model, index):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    index.scale_((torch.arange(10) != 2).float())
    masks = element_masks(model)
    for name, p in model.named_parameters():
        assert (p[masks[2][name]] == 0).all()
        assert torch.equal(p[~masks[2][name]], before[name][~masks[2][name]])


def test_the_optimizer_forgets_zeroed_groups_and_only_those(model, index):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    groups = torch.zeros(10, dtype=torch.bool)
    groups[7] = True
    index.clear_state_(optimizer, groups)
    momentum = optimizer.state[model.inner.weight]["momentum_buffer"]
    assert (momentum[3] == 0).all()
    assert (momentum[[0, 1, 2, 4, 5]] != 0).all()
    assert (optimizer.state[model.head.weight]["momentum_buffer"][:, 3] == 0).all()


def test_the_optimizer_forgets_with_adamw_too(model, index):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    index.clear_state_(optimizer, torch.arange(10) == 7)
    for key in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[model.inner.weight][key][3] == 0).all()
        assert (optimizer.state[model.inner.weight][key][2] != 0).all()


def test_a_frozen_parameter_has_no_gradient_and_no_say(model, index):
    model.head.weight.grad = None
    with_head = index.slopes()
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    assert torch.equal(with_head, index.slopes())


def test_tied_weights_count_once(model):
    parameters = dict(model.named_parameters())
    tied = GroupIndex({**parameters, "again.weight": model.inner.weight}, {**AXES, ("again.weight", 0): INNER}, 10)
    assert torch.equal(tied.sizes, GroupIndex(parameters, AXES, 10).sizes)


def test_soft_threshold():
    norms, thresholds = torch.tensor([2.0, 2.0, 0.0, 0.0, 2.0]), torch.tensor([0.5, 3.0, 0.0, 1.0, 0.0])
    assert shrink_factors(norms, thresholds).tolist() == [0.75, 0.0, 1.0, 0.0, 1.0]


def test_channels_last_weights_give_the_same_sums(model, index):
    before = index.norms()
    model.mix.weight.data = model.mix.weight.data.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(index.norms(), before)

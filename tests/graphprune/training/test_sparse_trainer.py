import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import graphprune as gp
from graphprune.passes.errors import BudgetError, TrainingError, UsageError

EXAMPLE = (torch.zeros(2, 1, 8, 8),)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


def batches(count, seed=0):
    """Images whose class is their brightness."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(3, (16,), generator=generator)
        images = 0.3 * torch.randn(16, 1, 8, 8, generator=generator)
        images += labels[:, None, None, None]
        yield images, labels


def train(model, pruner, optimizer, data):
    for images, labels in data:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        pruner.step()


def made(kind=torch.optim.SGD, **options):
    model = Net().train()
    optimizer = kind(model.parameters(), lr=0.05 if kind is torch.optim.SGD else 0.01)
    pruner = gp.SparseTrainer(model, EXAMPLE, **{"macs": 0.5, "steps": 40, "optimizer": optimizer, **options})
    return model, pruner, optimizer


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_loop_of_ones_own_ends_with_a_slim_model_that_computes_the_same(kind):
    model, pruner, optimizer = made(kind)
    assert pruner.phase == "warm-up"
    train(model, pruner, optimizer, batches(40))
    assert pruner.phase == "settle"
    slim = pruner.finish()
    assert isinstance(slim, Net)
    assert slim.training
    x = next(batches(1, seed=1))[0]
    torch.testing.assert_close(slim.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    graph = gp.trace(slim, EXAMPLE)
    dense = gp.trace(Net().eval(), EXAMPLE)
    share = graph.cost.macs(graph.all_kept()) / dense.cost.macs(dense.all_kept())
    assert share == pytest.approx(pruner.cost["macs"])
    assert 0.4 < share <= 0.5
    images, labels = next(batches(1, seed=2))
    assert (slim(images).argmax(1) == labels).float().mean() > 0.6  # it has learned meanwhile


def test_norms_that_are_frozen_stay_so():
    model, pruner, optimizer = made()
    model.norm.eval()
    train(model, pruner, optimizer, batches(40))
    slim = pruner.finish()
    assert [part.training for part in (model, model.norm, model.head)] == [True, False, True]
    assert [part.training for part in (slim, slim.norm, slim.head)] == [True, False, True]


def test_what_is_gone_stays_at_zero_in_further_steps():
    model, pruner, optimizer = made()
    train(model, pruner, optimizer, batches(40))
    plan = pruner.plan
    train(model, pruner, optimizer, batches(10, seed=3))
    assert pruner.plan.to_dict() == plan.to_dict()
    for name, dims in plan.removed.items():
        if "running" in name:
            continue
        for dim, indices in dims.items():
            assert (model.get_parameter(name).movedim(dim, 0)[list(indices)] == 0).all()


def test_layers_can_be_frozen_and_budgets_combined():
    model, pruner, optimizer = made(freeze=["block.0"], params=0.7)
    train(model, pruner, optimizer, batches(40))
    slim = pruner.finish()
    captured = gp.trace(slim, EXAMPLE)
    assert slim.block[0].out_channels == 16
    assert sum(p.numel() for p in slim.parameters()) <= 0.7 * sum(p.numel() for p in model.parameters())
    assert captured.n_groups < 24


def test_settings_count_where_no_argument_says_otherwise():
    config = gp.CompressConfig(macs=0.6, params=0.7, sensitivity="l2", freeze=("block.0",), align=4)
    _, pruner, _ = made(macs=None, config=config)
    found = pruner.config
    assert (found.macs, found.params, found.sensitivity, found.align) == (0.6, 0.7, "l2", 4)
    assert found.freeze == ("block.0",)
    _, pruner, _ = made(macs=0.5, sensitivity="l1", freeze=(), align=2, config=config)
    found = pruner.config
    assert (found.macs, found.params, found.sensitivity, found.align, found.freeze) == (0.5, 0.7, "l1", 2, ())


def test_it_goes_on_from_a_saved_state():
    whole = made()
    train(*whole, batches(40))
    first = made()
    data = list(batches(40))
    train(*first, data[:17])
    second = made()
    second[0].load_state_dict(first[0].state_dict())
    second[2].load_state_dict(first[2].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    train(*second, data[17:])
    assert second[1].plan.to_dict() == whole[1].plan.to_dict()
    assert np.array_equal(second[1].set.dead, whole[1].set.dead)


@pytest.mark.parametrize(
    "options", [{"macs": (0.5, 0.3)}, {"macs": None, "config": gp.CompressConfig(n_students=2, params=(0.5, 0.3))}]
)
def test_several_budgets_are_for_several_models(options):
    with pytest.raises(UsageError, match="gives several budgets, and one model is trained here"):
        made(**options)


def test_misuse_is_said():
    model, pruner, _ = made()
    with pytest.raises(TrainingError, match=r"more steps are needed .*; see steps="):
        pruner.finish()
    with pytest.raises(TrainingError, match=r"call step\(\) before optimizer.zero_grad"):
        pruner.step()
    with pytest.raises(UsageError, match="no budget given"):
        gp.SparseTrainer(model, EXAMPLE)
    with pytest.raises(BudgetError, match="cannot be reached"):
        gp.SparseTrainer(model, EXAMPLE, macs=0.0001)
    with pytest.raises(UsageError, match="looks at activations"):
        gp.SparseTrainer(model, EXAMPLE, macs=0.5, sensitivity="apoz")
    for setting in ({"policy": "ddpg"}, {"sigma": 2.0}):
        with pytest.raises(UsageError, match=r"policies that search .* and sigma are for compress\(\)"):
            gp.SparseTrainer(model, EXAMPLE, macs=0.5, config=gp.CompressConfig(**setting))
    with pytest.raises(UsageError, match="call reconstruct"):
        gp.SparseTrainer(model, EXAMPLE, macs=0.5, config=gp.CompressConfig(course="reconstructed"))
    with pytest.raises(UsageError, match="steps must be at least 10"):
        gp.SparseTrainer(model, EXAMPLE, macs=0.5, steps=3)


def test_gradients_that_are_not_finite_are_noticed():
    model, pruner, _ = made(config=gp.CompressConfig(warmup=0.05))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    pruner.step()
    pruner.step()  # the first draw comes after the warm-up
    with pytest.raises(TrainingError, match="not finite at step 3"):
        pruner.step()


def test_a_step_that_a_gradient_scaler_skips_is_not_looked_at():
    model, pruner, optimizer = made(config=gp.CompressConfig(warmup=0.1))
    for number, (images, labels) in enumerate(batches(40)):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        if number in (0, 1, 7):  # the scaler finds that its factor was too large
            for parameter in model.parameters():
                parameter.grad.fill_(torch.inf)
        else:
            optimizer.step()
        pruner.step()
    assert pruner.set.sensitivity.isfinite().all()
    assert pruner.cost["macs"] <= 0.5
    pruner.finish()


def test_weights_that_came_back_after_the_last_step_are_refused():
    model, pruner, optimizer = made()
    train(model, pruner, optimizer, batches(40))
    pruner.finish()
    with torch.no_grad():
        model.block[0].weight += 0.1  # as averaged weights do, or those of an older checkpoint
    with pytest.raises(TrainingError, match="are not at zero: weights changed after the last step"):
        pruner.finish()
    pruner.step()
    images = next(batches(1, seed=3))[0]
    torch.testing.assert_close(pruner.finish().eval()(images), model.eval()(images), rtol=1e-4, atol=1e-5)


def test_gradients_that_are_zero_throughout_are_none():
    model, pruner, optimizer = made()

    def in_the_wrong_order():
        for images, labels in batches(40):
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            pruner.step()

    with pytest.raises(TrainingError, match=r"call step\(\) before optimizer.zero_grad"):
        in_the_wrong_order()


def test_channels_of_weights_that_are_not_trained_stay_as_they_are():
    model = Net().train()
    model.block.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.block.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    pruner = gp.SparseTrainer(model, EXAMPLE, params=0.9, steps=40, optimizer=optimizer)
    train(model, pruner, optimizer, batches(40))
    assert torch.equal(model.block[0].bias, before["0.bias"])
    slim = pruner.finish()
    assert slim.block[0].out_channels == 16
    assert slim.stem.out_channels < 8
    changed = (model.block[0].weight != before["0.weight"]).any(3).any(2).any(0)
    assert changed.sum() == 8 - slim.stem.out_channels  # what reads channels of the stem that went

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.config import CompressConfig
from graphprune.importance import CRITERIA, Evidence, criterion, needs_gradient
from graphprune.passes.errors import UsageError
from graphprune.sparsity import GroupIndex


@pytest.fixture
def evidence():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1, bias=False))
    ids = np.arange(4)
    axes = {("0.weight", 0): ids, ("0.bias", 0): ids, ("1.weight", 1): ids}
    x = torch.randn(2, 2, 5, 5)
    model(x).square().sum().backward()
    index = GroupIndex(dict(model.named_parameters()), axes, 4)
    return Evidence(index, torch.Generator().manual_seed(1)), model


def slices(model, group, attribute):
    tensors = [getattr(model[0].weight, attribute)[group], getattr(model[0].bias, attribute)[group]]
    tensors.append(getattr(model[1].weight, attribute)[:, group])
    return torch.cat([t.flatten() for t in tensors])


def test_the_formulas(evidence):
    found, model = evidence
    for group in range(4):
        w, g = slices(model, group, "data"), slices(model, group, "grad")
        assert CRITERIA["l1"](found)[group] == pytest.approx(float(w.abs().sum() * w.abs().mean()), rel=1e-5)
        assert CRITERIA["l2"](found)[group] == pytest.approx(float(w.square().sum()), rel=1e-5)
        assert CRITERIA["taylor"](found)[group] == pytest.approx(float((w * g).sum()) ** 2, rel=1e-4)


def test_taylor_predicts_the_change_of_the_loss(evidence):
    found, model = evidence
    x = torch.randn(2, 2, 5, 5)
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    step = torch.ones(4)
    step[2] = 1 - 1e-3  # a small step towards removal, where first order is exact enough
    predicted = CRITERIA["taylor"](found)[2].sqrt() * 1e-3
    found.index.scale_(step)
    with torch.no_grad():
        change = abs(float(model(x).square().sum() - loss))
    assert change == pytest.approx(float(predicted), rel=0.02)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_gives_a_finite_score_a_group_and_names_its_source(evidence, name):
    found, _ = evidence
    scores = CRITERIA[name](found)
    assert scores.shape == (4,)
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert "Source:" in CRITERIA[name].__doc__
    CompressConfig(criterion=name)  # the settings know it


def test_random_is_determined_by_its_generator(evidence):
    found, _ = evidence
    first = CRITERIA["random"](found)
    again = CRITERIA["random"](Evidence(found.index, torch.Generator().manual_seed(1)))
    other = CRITERIA["random"](Evidence(found.index, torch.Generator().manual_seed(2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(UsageError, match="--criterion must be one of random, l1, l2, taylor, not 'magic'"):
        criterion("magic")


def test_only_taylor_needs_gradients():
    assert [name for name in CRITERIA if needs_gradient(name)] == ["taylor"]

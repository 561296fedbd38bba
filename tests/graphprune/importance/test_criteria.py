import numpy as np
import pytest
import torch
from torch import nn

from graphprune.config import CompressConfig
from graphprune.importance.criteria import CRITERIA, Evidence, criterion
from graphprune.importance.group_index import GroupIndex
from graphprune.passes.errors import UsageError


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
def test_every_criterion_names_its_source_and_is_a_sensitivity(name):
    assert len(CRITERIA[name].source) > 20
    if CRITERIA[name].needs == "costs":  # which a training has no time for
        with pytest.raises(UsageError):
            CompressConfig(sensitivity=name)
    else:
        CompressConfig(sensitivity=name)  # the settings know it


def test_the_geometric_median(evidence):
    found, model = evidence
    scores = CRITERIA["fpgm"](Evidence(found.index, found.generator, sets=[np.arange(4)]))
    vectors = [slices(model, group, "data") for group in range(4)]
    for group in range(4):
        distances = [float((vectors[group] - other).norm()) for other in vectors]
        assert scores[group] == pytest.approx((sum(distances) / 3) ** 2, rel=1e-4)


def test_the_scale_of_normalization_only_where_there_is_one(evidence):
    found, model = evidence
    scores = CRITERIA["bn_scale"](Evidence(found.index, found.generator, scales=frozenset({"0.bias"})))
    torch.testing.assert_close(scores, model[0].bias.detach().square())
    with pytest.raises(UsageError, match="needs BatchNorm layers"):
        CRITERIA["bn_scale"](found)


class Maps:
    """Stands in for what a network computes: one activation that carries all groups."""

    def __init__(self, maps):
        self.maps = maps

    def sums(self, per_image, over_images, most=None):
        return over_images(per_image(self.maps[:most]))


@pytest.fixture
def maps():
    """8 images of 4 channels: always zero; constant; one random number an image; random pixels."""
    torch.manual_seed(0)
    maps = torch.zeros(8, 4, 5, 5)
    maps[:, 1] = 2.0
    maps[:, 2] = torch.rand(8, 1, 1)
    maps[:, 3] = torch.rand(8, 5, 5) + torch.arange(8)[:, None, None]
    maps[::2, 3, 0] = 0.0
    return maps


def looked(evidence, maps, name):
    return CRITERIA[name](Evidence(evidence[0].index, evidence[0].generator, activations=Maps(maps)))


def test_activations_that_are_not_zero(evidence, maps):
    assert looked(evidence, maps, "apoz").tolist() == pytest.approx([0, 1, 1, 0.9])


def test_entropy_over_images(evidence, maps):
    scores = looked(evidence, maps, "entropy")
    assert scores[:2].tolist() == [0, 0]
    assert 0 < scores[2] <= scores[3] == pytest.approx(np.log(8))  # eight images, all in bins of their own


def test_rank_of_feature_maps(evidence, maps):
    assert looked(evidence, maps, "hrank").tolist() == pytest.approx([0, 1, 1, 4.5])  # every other one has a zero row
    assert looked(evidence, maps[..., 0], "hrank").tolist()[:2] == [0, 1]
    assert looked(evidence, maps[..., 0, 0], "hrank").tolist()[:2] == [0, 1]


@pytest.mark.parametrize("name", ["apoz", "entropy", "hrank"])
def test_criteria_of_activations_ask_for_images(evidence, name):
    with pytest.raises(UsageError, match="give images"):
        CRITERIA[name](evidence[0])


def test_random_is_determined_by_its_generator(evidence):
    found, _ = evidence
    first = CRITERIA["random"](found)
    again = CRITERIA["random"](Evidence(found.index, torch.Generator().manual_seed(1)))
    other = CRITERIA["random"](Evidence(found.index, torch.Generator().manual_seed(2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(UsageError, match=r"^importance must be one of random, l1, l2, taylor, .*, not 'magic'"):
        criterion("magic")

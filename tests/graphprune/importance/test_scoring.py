import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.importance.activations import ActivationStatistics, activation_nodes
from graphprune.importance.criteria import CRITERIA
from graphprune.importance.scoring import score_groups
from graphprune.passes.errors import DataError, UnsupportedModelError, UsageError


class Net(nn.Module):
    """Channel 2 of the trunk is never active; the block runs through no activation function but inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.block = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.plain, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 4)
        with torch.no_grad():
            self.norm.bias[2] = -50.0
            self.block[2].weight[2] = self.block[2].bias[2] = 0.0

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.block(x))
        return self.head(self.plain(x).mean((2, 3)))


@pytest.fixture(scope="module")
def graph():
    return gp.trace(Net().eval(), (torch.randn(2, 1, 8, 8),))


IMAGES = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)


def groups_of(graph, name):
    return next(s.groups for s in graph.sets if s.name == name)


def test_functions_are_looked_at_and_where_there_is_none_the_last_result(graph):
    names = activation_nodes(graph, graph.front_end.module)
    kinds = [name.split("_")[0] for name in names]
    assert kinds.count("relu") == 3
    assert len(names) == 4  # and the channels of `plain`
    assert graph.value_groups[names[-1]][1].tolist() == groups_of(graph, "plain").tolist()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_one_shot_plan_by_every_criterion(graph, name):
    scores = score_groups(graph, name, IMAGES)
    assert scores.shape == (graph.n_groups,)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores.max() > 0
    plan = gp.plan(graph, macs=0.5, importance=name, images=IMAGES)
    assert plan.meta["importance"] == name
    assert 0.3 < graph.cost.macs(~graph.removed_by(plan)) / graph.cost.macs(graph.all_kept()) <= 0.5


@pytest.mark.parametrize("name", ["apoz", "hrank", "entropy"])
def test_a_channel_that_is_never_active_goes_first(graph, name):
    trunk = groups_of(graph, "stem")
    scores = score_groups(graph, name, IMAGES)[trunk]
    assert scores[2] == 0
    assert (np.delete(scores, 2) > 0).all()


def test_gradients_are_those_of_its_own_answers(graph):
    scores = score_groups(graph, "taylor", IMAGES)
    assert scores[groups_of(graph, "stem")[2]] == pytest.approx(0, abs=1e-12)
    assert (scores > 0).sum() > graph.n_groups / 2
    assert not any(p.grad is not None for p in graph.front_end.module.parameters())


def test_answers_that_are_probabilities_are_judged_as_their_logits_would_be(graph):
    soft = gp.trace(nn.Sequential(Net(), nn.Softmax(1)).eval(), (torch.randn(2, 1, 8, 8),))
    np.testing.assert_allclose(
        score_groups(soft, "taylor", IMAGES), score_groups(graph, "taylor", IMAGES), rtol=1e-3, atol=1e-12
    )


def test_answers_may_be_said_to_be_numbers(graph):
    classes, numbers = (score_groups(graph, "taylor", IMAGES, output_loss=kind) for kind in ("auto", "mse"))
    assert not np.allclose(classes / classes.max(), numbers / numbers.max(), rtol=0.1)
    narrow = gp.trace(nn.Sequential(Net(), nn.Linear(4, 1)).eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(UsageError, match="compares classes"):
        gp.plan(narrow, macs=0.5, importance="taylor", images=IMAGES, output_loss="kl")


@pytest.mark.parametrize("name", ["taylor", "apoz"])
def test_without_images_it_says_what_is_missing(graph, name):
    with pytest.raises(UsageError, match=f"importance '{name}' needs images"):
        gp.plan(graph, macs=0.5, importance=name)


def test_removed_groups_have_no_activation(graph):
    present = graph.all_kept()
    present[groups_of(graph, "block.0")[:3]] = False
    from graphprune.training.removal import Removal

    removal = Removal(graph, [])
    module = removal.cut(present)
    statistics = ActivationStatistics(module, graph, lambda: [torch.from_numpy(IMAGES)], present)
    sums = statistics.sums(lambda maps: torch.ones(maps.shape[:2]), lambda values: values.mean(0))
    assert sums[~present].tolist() == [0, 0, 0]
    assert sums[groups_of(graph, "block.0")[3:]].tolist() == [1] * 5
    assert sums[groups_of(graph, "stem")].tolist() == [2] * 6


def test_images_that_come_class_by_class_are_all_looked_at(graph):
    dark, noise = np.full((300, 1, 8, 8), -9.0, np.float32), np.tile(IMAGES, (8, 1, 1, 1))
    both = score_groups(graph, "apoz", np.concatenate([dark, noise]))
    assert not np.allclose(both, score_groups(graph, "apoz", dark), rtol=0.02)
    assert not np.allclose(both, score_groups(graph, "apoz", noise), rtol=0.02)


@pytest.mark.parametrize("name", ["taylor", "apoz"])
def test_images_are_given_in_the_number_format_of_the_model(graph, name):
    double = gp.trace(Net().double().eval(), (torch.randn(2, 1, 8, 8).double(),))
    np.testing.assert_allclose(score_groups(double, name, IMAGES), score_groups(graph, name, IMAGES), rtol=0.01)


def test_weights_without_gradients_are_worth_what_they_are_with_them(graph):
    frozen = gp.trace(Net().eval().requires_grad_(False), (torch.randn(2, 1, 8, 8),))
    expected, found = (score_groups(g, "taylor", IMAGES) for g in (graph, frozen))
    np.testing.assert_allclose(found, expected)
    assert not any(parameter.requires_grad for parameter in frozen.front_end.module.parameters())


def test_images_that_the_model_does_not_take(graph):
    for options in ({"importance": "taylor"}, {"importance": "apoz"}, {"policy": "random", "macs": 0.5}):
        asked = {"ratio": 0.5} if "macs" not in options else {}
        with pytest.raises(DataError, match="the model takes images of 1x8x8"):
            gp.plan(graph, **asked, **options, images=np.zeros((4, 3, 8, 8), np.float32))


def test_a_graph_of_one_batch_size():
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x.reshape(2, 1, 8, 8))

    fixed = gp.trace(Fixed().eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(UnsupportedModelError, match="takes batches of exactly 2, scores are found on"):
        gp.plan(fixed, ratio=0.5, importance="taylor", images=IMAGES)
    with pytest.raises(UnsupportedModelError, match="takes batches of exactly 2, a search needs"):
        gp.plan(fixed, macs=0.5, policy="random", images=IMAGES)


def test_scores_may_have_gradients(graph):
    scores = torch.rand(graph.n_groups, requires_grad=True)
    assert gp.plan(graph, ratio=0.5, importance=scores) == gp.plan(graph, ratio=0.5, importance=scores.detach())


class Masked(nn.Module):
    """Two layers whose weights are products: of tiny numbers with ones, and of large ones with half ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1)
        mask = torch.ones_like(self.first.weight)
        mask[4:, :, ::2] = 0
        self.register_buffer("mask", mask)
        with torch.no_grad():
            self.first.weight[:4] *= 1e-3
            self.second.weight.fill_(0.1)

    def forward(self, x):
        y = nn.functional.conv2d(x, self.first.weight * self.mask, padding=1)
        return self.second(torch.relu(y))


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm"])
def test_what_a_layer_computes_with_is_what_counts(tmp_path, form, importance):
    model, inputs = Masked().eval(), (torch.randn(2, 3, 8, 8),)
    graph = gp.trace(model, inputs)
    if form == "onnx":
        torch.onnx.export(model, inputs, tmp_path / "m.onnx", dynamo=False, opset_version=17, do_constant_folding=False)
        graph = gp.trace(tmp_path / "m.onnx")
    (only,) = graph.sets
    scores = score_groups(graph, importance)[only.groups]
    with torch.no_grad():
        weight = model.first.weight * model.mask
        expected = weight.flatten(1).square().sum(1) + 4 * 0.1**2
    if importance == "l2":
        assert np.allclose(scores, expected.numpy(), rtol=1e-5)
    if importance != "fpgm":
        assert scores[:4].max() < scores[4:].min()


def test_a_direction_and_a_scale_are_no_weights_of_their_own():
    """A normalized weight is as large as its scale, however long the direction is that it is made of."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        model[0].parametrizations.weight.original1[0] *= 1e4
        model[2].weight.fill_(0.0)
        model[0].bias.zero_()
    graph = gp.trace(model.eval(), (torch.randn(2, 3, 8, 8),))
    scores = score_groups(graph, "l2")[groups_of(graph, graph.sets[0].name)]
    scale = model[0].parametrizations.weight.original0.detach().flatten().numpy()
    assert np.allclose(scores, scale**2, rtol=1e-4)

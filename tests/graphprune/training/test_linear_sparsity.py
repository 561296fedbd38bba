import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.passes.errors import PlanError
from graphprune.training.linear_sparsity import LinearSparsity, linear_weights, outliers
from graphprune.training.removal import cut_tensor


def network():
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 5)),
    )
    return nn.Sequential(*layers).eval()


def look(model, sigma, freeze=()):
    graph = gp.trace(model, (torch.zeros(1, 3, 8, 8),))
    return graph, LinearSparsity(graph, graph.front_end.module, sigma, freeze)


@pytest.mark.parametrize(("sigma", "share"), [(1, 0.3173), (2, 0.0455), (3, 0.0027)])
def test_of_a_normally_distributed_layer_the_tails_stay(sigma, share):
    torch.manual_seed(0)
    kept = outliers(0.7 + 0.1 * torch.randn(1000, 400), sigma)
    assert kept.double().mean().item() == pytest.approx(share, rel=0.05)


def test_the_distance_from_the_mean_decides():
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0], [0.1, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0]])
    kept = outliers(weight, 2.0)
    assert kept.nonzero().tolist() == [[0, 7], [1, 7]]
    shifted = outliers(weight + 5.0, 2.0)
    assert torch.equal(kept, shifted)


def test_rows_that_must_stay_keep_their_largest_weight():
    weight = torch.tensor([[0.0, 0.1, -0.2], [50.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    kept = outliers(weight, 2.0, torch.tensor([True, True, False]))
    assert kept.tolist() == [[False, False, True], [True, False, False], [False, False, False]]


def test_nothing_is_kept_back_without_a_threshold():
    model = network()
    _, sparsity = look(model, 0.0)
    assert sparsity.masks == {}
    assert not sparsity.dead.any()
    assert not sparsity.own.any()


def test_a_frozen_layer_keeps_its_weights():
    _, sparsity = look(network(), 1.0, ["4"])
    assert set(sparsity.masks) == {"6.weight"}
    assert sparsity.layers == []
    with pytest.raises(PlanError, match="nothing is named 'head'"):
        look(network(), 1.0, ["head"])


def test_only_linear_layers_are_thinned():
    model = network()
    graph, sparsity = look(model, 1.0)
    assert linear_weights(graph) == ["4.weight", "6.weight"]
    assert set(sparsity.masks) == {"4.weight", "6.weight"}
    assert sparsity.layers == ["4.weight"]  # the classes are no channels that could go
    module = graph.front_end.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    sparsity.apply_(module, graph.all_kept())
    for name, tensor in module.state_dict().items():
        mask = sparsity.masks.get(name)
        assert torch.equal(tensor, before[name] if mask is None else before[name] * mask)
    left = sparsity.describe(module.state_dict())
    assert left["4.weight"] == {"weights": 640, "left": int(sparsity.masks["4.weight"].sum())}


def test_every_class_keeps_a_weight():
    _, sparsity = look(network(), 50.0)
    assert sparsity.masks["4.weight"].sum() == 0
    assert (sparsity.masks["6.weight"].sum(1) == 1).all()


def test_neurons_that_nothing_reads_or_reaches_are_dead():
    model = network()
    with torch.no_grad():
        for layer in (model[4], model[6]):
            layer.weight.copy_(torch.randn_like(layer.weight) * 1e-3)
        model[4].weight[3, 5] = model[4].weight[7, 1] = 1.0  # two that are reached
        model[4].bias.zero_()
        model[6].weight[:, 3] = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])  # one that is read
        model[6].weight[:, 11] = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])  # read, and reached by nothing
    graph, sparsity = look(model, 2.0)
    hidden = graph.axes["4.weight", 0]
    assert sparsity.own[hidden].all()
    dead = sparsity.dead[hidden]
    assert not dead[3]
    assert dead[[0, 1, 2, 7, 11]].all()
    # The masks cut with the groups are those of the slim layer.
    present = graph.all_kept() & ~sparsity.dead
    plan = graph.plan(sparsity.dead)
    slim = gp.slim(model, plan, (torch.zeros(1, 3, 8, 8),))
    sparse = network()
    sparse.load_state_dict(model.state_dict())
    module = graph.front_end.module
    sparsity.apply_(module, graph.all_kept())
    sparse.load_state_dict({name: module.state_dict()[name] for name in sparse.state_dict()})
    sparsity.apply_(slim, present)
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(slim(x), sparse(x), atol=1e-6)
    assert slim[4].weight.shape[0] == 20 - int(dead.sum())


def test_channels_of_convolutions_are_not_this_pass_to_judge():
    model = network()
    graph, sparsity = look(model, 1.0)
    assert not sparsity.own[graph.axes["0.weight", 0]].any()
    assert np.count_nonzero(sparsity.own) == 20


def test_a_layer_of_which_next_to_nothing_stays_is_said(caplog):
    torch.manual_seed(0)
    look(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10)).eval(), 3.0)  # uniform: no outliers
    assert "sigma 3 leaves 10 of the 1920 weights of 1.weight" in caplog.text


def test_a_model_without_a_linear_layer_is_said(caplog):
    look(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 6)).eval(), 2.0)
    said = [record.message for record in caplog.records if record.name == "graphprune"]
    assert said == ["sigma 2 makes nothing sparse: the model has no linear layer"]


def test_what_is_counted_is_what_is_left_whichever_channels_go():
    model = network()
    with torch.no_grad():
        model[4].weight.normal_()
        model[4].weight[:, :16] *= 0.7  # most outliers are in the columns of the last four channels
    graph, sparsity = look(model, 1.5)
    counted = sparsity.thinned(without_dead=True).cost
    (first,) = (group_set.groups for group_set in graph.sets if group_set.name == "0")
    for gone in (first[:4], first[4:], first[:0]):
        kept = ~sparsity.dead
        kept[gone] = False
        masks = [cut_tensor(graph, name, mask, graph.all_kept(), kept) for name, mask in sparsity.masks.items()]
        assert counted.params(kept) == graph.cost.params(kept) - sum(int((~mask).sum()) for mask in masks)
        assert counted.macs(kept) == graph.cost.macs(kept)

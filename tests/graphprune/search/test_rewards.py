import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.slim import mask
from graphprune.search.rewards import OneShot
from graphprune.training.batchnorm import reestimate_batch_norm


def classifier():
    torch.manual_seed(1)
    layers = (
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    return nn.Sequential(*layers).eval()


def _images():
    rng = np.random.default_rng(0)
    colors, texture = rng.standard_normal((80, 3, 1, 1)), rng.standard_normal((80, 3, 8, 8))
    return (colors + 0.3 * texture).astype(np.float32)


IMAGES = _images()


def judge(model=None, number=64, seed=0, images=IMAGES):
    model = model or classifier()
    with torch.no_grad():
        for _ in range(60):  # until the running statistics are those of the images
            model.train()(torch.from_numpy(images))
    graph = gp.trace(model.eval(), (torch.zeros(1, 3, 8, 8),))
    return graph, OneShot(graph, images, number, seed)


def test_the_dense_model_is_near_itself_and_fewer_channels_are_further():
    graph, evaluate = judge()
    dense = evaluate(graph.all_kept())
    assert dense.agreement > 0.75  # its statistics come from fewer images
    assert dense.distance < 0.1
    rewards = [dense.reward]
    for share in (0.3, 0.8):
        kept = graph.all_kept()
        for group_set in graph.sets:
            kept[group_set.groups[: int(share * len(group_set.groups))]] = False
        rewards.append(evaluate(kept).reward)
    assert rewards == sorted(rewards, reverse=True)


def test_the_cut_model_answers_as_the_masked_one_would():
    graph, evaluate = judge()
    kept = graph.all_kept()
    kept[graph.sets[0].groups[::3]] = False
    kept[graph.sets[1].groups[::2]] = False
    masked = mask(graph.front_end.module, graph.plan(~kept))
    images = torch.from_numpy(IMAGES[np.random.default_rng(0).permutation(80)[:64]])
    reestimate_batch_norm(masked, masked, [images[:16]])
    masked.eval()
    with torch.no_grad():
        dense, found = graph.front_end.module(images), masked(images)
    agreement = (dense.argmax(1) == found.argmax(1)).float().mean().item()
    assert evaluate(kept).agreement == pytest.approx(agreement)


def test_dropout_before_a_norm_neither_disturbs_a_trial_nor_makes_it_another_each_time():
    plain = classifier()
    noisy = nn.Sequential(*plain[:3], nn.Dropout(0.5), *plain[3:]).eval()
    graphs = [gp.trace(net, (torch.zeros(1, 3, 8, 8),)) for net in (plain, noisy)]
    without, with_dropout = (OneShot(graph, IMAGES, 64)(graph.all_kept()) for graph in graphs)
    before = torch.get_rng_state()
    assert OneShot(graphs[1], IMAGES, 64)(graphs[1].all_kept()) == with_dropout == without
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_stays_as_it_was():
    graph, evaluate = judge()
    before = {name: tensor.clone() for name, tensor in graph.front_end.module.state_dict().items()}
    kept = graph.all_kept()
    kept[:5] = False
    first = evaluate(kept)
    assert evaluate(kept) == first
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.front_end.module.state_dict().items())


def test_a_fingerprint_tells_models_and_images_apart():
    other = classifier()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    prints = {found.fingerprint for _, found in (judge(), judge(other), judge(seed=1), judge(number=32))}
    assert len(prints) == 4
    assert judge()[1].fingerprint in prints


def test_a_fingerprint_tells_normalizations_apart(tmp_path):
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8))
    graph = gp.trace(classifier(), (torch.zeros(1, 3, 8, 8),))
    prints = {
        OneShot(graph, gp.load_images(tmp_path / "pixels.npy", mean=[mean], std=[std]), 8).fingerprint
        for mean, std in ((0.5, 0.5), (0.9, 0.5), (0.5, 0.01))
    }
    assert len(prints) == 3


def test_a_network_that_is_no_classifier_is_judged_by_distance():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    graph, evaluate = judge(model)
    kept = graph.all_kept()
    assert evaluate(kept).agreement is None
    assert evaluate(kept).distance == pytest.approx(0.0, abs=1e-9)
    kept[0] = False
    assert evaluate(kept).reward < 0


def test_a_vector_of_numbers_is_judged_by_distance_where_that_is_said():
    graph, guessed = judge()
    told = OneShot(graph, IMAGES, 64, 0, "mse")
    assert guessed(graph.all_kept()).agreement is not None
    assert told(graph.all_kept()).agreement is None
    assert told.fingerprint != guessed.fingerprint


def test_an_onnx_graph_is_not_run(tmp_path):
    path = tmp_path / "m.onnx"
    gp.export_onnx(classifier(), (torch.zeros(1, 3, 8, 8),), path)
    graph = gp.trace(str(path))
    with pytest.raises(UsageError, match="give a torch model"):
        OneShot(graph, IMAGES, 16)

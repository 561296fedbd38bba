"""The networks that GraphPrune is measured on: what is coupled, what is not, and what it costs."""

import numpy as np
import pytest
import torch
import zoo

from graphprune.models import mobilenet_v2, resnet20, vgg_small
from graphprune.passes.fx.analyze import analyze, trace
from graphprune.passes.fx.outputs import difference, run
from graphprune.passes.fx.slim import mask, slim


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.randomize(resnet20()).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    return model, x, trace(model, (x,))


def test_the_trunk_of_a_stage_is_one_set_and_inner_channels_are_their_own(resnet):
    """Zero-padded shortcuts couple a stage's trunk with the middle of the next one's."""
    _, _, graph = resnet
    sets = {s.name: s for s in graph.sets}
    inner = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)}
    assert set(sets) == {"conv1", "layer2.0.conv2", "layer3.0.conv2", *inner}
    assert {name: len(sets[name].groups) for name in sets if name not in inner} == {
        "conv1": 16,  # the trunk of stage 1 is channels 8-23 of stage 2 and 24-39 of stage 3
        "layer2.0.conv2": 16,  # the other channels of stage 2
        "layer3.0.conv2": 32,  # the other channels of stage 3
    }
    for name in inner:
        stage = int(name[5])
        assert len(sets[name].groups) == 8 * 2**stage
        assert sets[name].bypassed
        block = name.removesuffix(".conv1")
        assert {m[:2] for m in sets[name].members} == {
            (f"{block}.conv1.weight", 0),
            (f"{block}.bn1.weight", 0),
            (f"{block}.bn1.bias", 0),
            (f"{block}.bn1.running_mean", 0),
            (f"{block}.bn1.running_var", 0),
            (f"{block}.conv2.weight", 1),
        }
    assert not sets["conv1"].bypassed
    assert graph.exact.all()


def test_the_trunk_runs_through_every_block_at_the_padded_positions(resnet):
    _, _, graph = resnet
    stem = graph.axes[("conv1.weight", 0)]
    assert graph.axes[("layer1.2.conv2.weight", 0)].tolist() == stem.tolist()
    assert graph.axes[("layer2.0.conv2.weight", 0)][8:24].tolist() == stem.tolist()
    assert graph.axes[("layer3.2.conv2.weight", 0)][24:40].tolist() == stem.tolist()
    assert graph.axes[("linear.weight", 1)].tolist() == graph.axes[("layer3.2.conv2.weight", 0)].tolist()


def test_costs_of_the_published_network(resnet):
    model, _, graph = resnet
    kept = graph.all_kept()
    assert graph.cost.macs(kept) == 40_551_040
    assert graph.cost.params(kept) == sum(p.numel() for p in model.parameters())


def test_a_third_of_everything_goes(resnet):
    model, x, graph = resnet
    rng = np.random.default_rng(0)
    plan = graph.plan(zoo.random_removal(graph, rng, share=0.33, branches=True))
    removed = graph.removed_by(plan)
    slimmed = slim(model, plan, (x,), graph=graph, tolerance=1e-9)
    assert difference(run(mask(model, plan), (x[:1],))[0], run(slimmed, (x[:1],))[0]) < 1e-9
    again = trace(slimmed, (x,))
    assert again.cost.macs(again.all_kept()) == graph.cost.macs(~removed)


def test_expand_depthwise_and_project_of_mobilenet():
    torch.manual_seed(0)
    model = zoo.randomize(mobilenet_v2(width=0.25)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = trace(model, (x,))
    by_name = {s.name: s for s in graph.sets}
    expand = by_name["features.3.conv.0.0"]
    weights = [m for m in expand.members if m[0].endswith(".weight") and len(graph.shapes[m[0]]) == 4]
    assert sorted(weights) == [
        ("features.3.conv.0.0.weight", 0, 1),  # expand
        ("features.3.conv.1.0.weight", 0, 1),  # depthwise
        ("features.3.conv.2.weight", 1, 1),  # project
    ]
    assert len(expand.groups) == model.features[3].conv[0][0].out_channels
    assert expand.bypassed == model.features[3].use_shortcut
    # blocks that keep their shape share the trunk with the block before them
    for index in range(2, len(model.features) - 1):
        block = model.features[index]
        project = graph.axes[(f"features.{index}.conv.2.weight", 0)]
        entry = graph.axes[(f"features.{index}.conv.0.0.weight", 1)]
        assert (project.tolist() == entry.tolist()) == block.use_shortcut
    assert graph.exact.all()
    assert graph.cost.params(graph.all_kept()) == sum(p.numel() for p in model.parameters())
    plan = graph.plan(zoo.random_removal(graph, np.random.default_rng(1)))
    slimmed = slim(model, plan, (x,), graph=graph, tolerance=1e-9)
    depthwise = slimmed.features[3].conv[1][0]
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels < len(expand.groups)


def test_every_layer_of_a_plain_network_is_a_set():
    model = vgg_small().eval()
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, (x,))
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [len(s.groups) for s in graph.sets][: len(convolutions)] == [m.out_channels for m in convolutions]
    assert not any(s.bypassed for s in graph.sets)
    slimmed = slim(model, graph.plan(np.arange(graph.n_groups) % 3 == 0), (x,), graph=graph)
    assert analyze(graph.front_end.module).n_groups == graph.n_groups
    assert type(slimmed) is type(model)

"""Every network of the zoo: its groups, and that its slim form computes what its masked form does.

`GROUPS` gives the sets of each network as "first layer:groups", with ~ where their removal is inexact and * where
the whole set may go.
"""

import numpy as np
import pytest
import torch
import zoo
from torch.utils import _pytree as pytree

from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.slim import mask, slim

GROUPS = {
    "Plain": "features.0:6 features.4:8 classifier.0:10",
    "Residual": "stem.0:6 layer1.0.conv1:6* layer1.1.conv1:6* layer2.0.conv1:10* layer2.0.conv2:10 layer2.1.conv1:10*",
    "ResidualPad": (
        "stem.0:6 layer1.0.conv1:6* layer1.1.conv1:6* layer2.0.conv1:10* layer2.0.conv2:4* layer2.1.conv1:10*"
    ),
    "InvertedResidual": "stem.0:4 expand.0:12* down.0:8 down.6:6",
    "DepthwiseMultiplier": "stem:4",
    "GroupedFew": "stem.0:4 grouped.0:6",
    "GroupedMany": "stem.0:6",
    "GroupedInput": "grouped:4",
    "Transposed": "stem:8 dense:6 few:2",
    "Conv1d": "conv1:6 conv2:8 up:6",
    "Conv3d": "conv1:6 up:4",
    "SqueezeExcite": "stem.0:8 reduce:4* body.0:6 fc1:3",
    "EcaGate": "body.0:6",
    "SpatialGate": "stem.0:8~ body.0:6",
    "Dense": "stem:4 convs.0:3 convs.1:3 convs.2:3 transition.2:6",
    "Csp": "cv1.0:4 cv1.0:4 blocks.0.0:6* blocks.1.0:6* cv2.0:6",
    "CspSizes": "cv1.0:4 cv1.0:4 blocks.0.0:6* blocks.1.0:6* cv2.0:6",
    "SliceHalves": "stem.0:2* stem.0:2* stem.0:2* stem.0:2* left.0:4 middle:4",
    "PooledHalves": "stem.0:4 stem.0:4",
    "ShuffleView": "stem.0:2 stem.0:2 stem.0:4 branch1.0:4 branch2.0:6",
    "ShuffleBatch": "stem.0:4 branch.0:6 branch.3:4",
    "ShuffleModule": "stem.0:4",
    "PixelShuffle": "stem.0:4 body:6",
    "UNet": "enc1.0:4 enc2.0:6 enc3.0:8 up:6 dec2.0:5 dec1.0:4",
    "CatConstant": "stem.0:6 head:2*",
    "StackMaxout": "a.0:6 maxout:4",
    "SplitAttention": "stem.0:4 body.0:8 fc1:4",
    "Hierarchical": "stem.0:3 stem.0:3 stem.0:3 stem.0:3 convs.2.0:3 body.0:6",
    "GatedUnit": "stem:6 body:4",
    "PReLU": "conv1:6 conv2:8",
    "SharedModule": "stem.0:6",
    "TiedWeights": "stem:6 first:8",
    "TiedAutoencoder": "weight:8 stem:6",
    "RawScale": "scale:6",
    "Functional": "kernels.0:6 kernels.1:8",
    "OneOutput": "stem:6",
    "Buffers": "stem:6 body:6",
    "IndexedChannels": "stem:6",
    "WeightNorm": "conv1:6 conv2:8",
    "OldWeightNorm": "conv1:6 conv2:8 conv3:7",
    "WeightStandardized": "weight:8 stem:6~",
    "SigmoidBias": "conv1:6 conv2:8 conv3:6",
    "GroupNorms": "conv1:6~ conv2:4~ conv3:6 conv4:6",
    "InstanceNorms": "conv1:6 conv2:8 conv3:6",
    "BatchNorms": "conv1:6 conv2:8",
    "ConvNext": "stem:6~ fc1:12",
    "Normalized": "conv1:6 conv2:8",
    "SumOverChannels": "conv1:6 conv2:6~",
    "Mlp": "fc1:8",
    "Mixer": "patch:6 token1:10* channel1:12*",
    "Attention": "patch:8 qkv:4*",
    "AttentionSdpa": "patch:8 qkv:4*",
    "AttentionSeparate": "query:4 value:6",
    "LinearAttention": "stem.0:8 qkv:4*",
    "WindowAttention": "patch:8~ qkv:4 merge:12",
    "MultiHead": "inner:8~ attention.in_proj_weight:4 fc1:12",
    "NonLocal": "stem.0:6 theta:4 g:4*",
    "Tokens": "table:8 fc1:12",
    "TwoOutputs": "stem.0:6",
    "DictOutput": "stem.0:6 body.0:8",
    "TwoInputs": "stem.0:6",
    "Pyramid": "c1.0:4 c2.0:6 lateral.0:5",
    "Conditional": "route:3 experts:8",
    "Unknown": "stem.0:6 last.0:6",
    "Fourier": "stem.0:6 body.0:6",
    "InPlace": "stem:4* body:6 stem:4*",
    "InPlaceNonZero": "stem:6~",
    "Assigned": "left:4* right:4* body:6",
    "Literal": "body:6",
    "Masks": "stem:6 body:8",
    "Dropouts": "stem.0:6 body.0:8",
    "Windows": "stem:6 fc1:8",
    "Unfold": "stem:4 body:6",
    "Recurrent": "stem:6 lstm.weight_hr_l0:5",
    "RecurrentState": "start:6 rnn.weight_ih_l0:7",
    "Sampled": "stem:6 body:7",
    "Columns": "stem:4 mix:6",
    "Spectrum": "filter:6",
    "Bags": "table:6 fc1:8",
    "Tokenized": "patch:12",
    "GroupedQueries": "patch:12 query:4",
    "GroupedQueriesFused": "patch:12 query:4",
    "SharedKeys": "patch:12 pair:4 query:4",
    "TalkingHeads": "patch:12 qkv:4 before:6",
    "NormalizedQueries": "patch:12 qkv:4~",
    "Rotary": "patch:12 qkv:2",
    "ShiftedWindows": "patch:12 qkv:4",
    "Einsum": "value:4 weight:8 last:6 patch:12 query:4",
    "TokenMixing": "patch:12 up:10*",
    "Transformer": "patch:12~ layer.self_attn.in_proj_weight:4 layer.linear1:20*",
    "CrossAttention": "patch:12 memory:10 attention.q_proj_weight:4 attention.v_proj_weight:4",
    "Cells": "patch:12 rnn.weight_ih:4 gru.weight_ih:7 lstm.weight_ih:6",
    "Composites": "patch:12 last:6 body:6",
    "DynamicRelu": "stem.0:6 body.0:8 squeeze:5",
}

#: Networks whose own Python fixes sizes, so that only the captured graph can be cut.
FIXED_SIZES = {
    "ResidualPad",
    "Csp",
    "CspSizes",
    "SliceHalves",
    "PooledHalves",
    "ShuffleView",
    "StackMaxout",
    "Buffers",
    "Masks",
    "IndexedChannels",
    "Attention",
    "AttentionSdpa",
    "AttentionSeparate",
    "LinearAttention",
    "WindowAttention",
    "MultiHead",
    "SplitAttention",
    "Hierarchical",
    "Conditional",
    "InPlace",
    "CatConstant",
    "Assigned",
    "GroupedQueries",
    "GroupedQueriesFused",
    "SharedKeys",
    "TalkingHeads",
    "NormalizedQueries",
    "Rotary",
    "ShiftedWindows",
    "Einsum",
    "Transformer",
    "CrossAttention",
    "Cells",
    "Composites",
    "DynamicRelu",
}


def outputs(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*inputs))


def worst(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Largest difference relative to the largest output."""
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert a.abs().max() > 1e-6  # a test on zeros proves nothing
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def test_every_network_is_listed():
    assert set(GROUPS) == set(zoo.ZOO)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_groups(name):
    _, _, graph = zoo.analyzed(name)
    found = [
        f"{s.name}:{len(s.groups)}{'' if graph.exact[s.groups].all() else '~'}{'*' if s.bypassed else ''}"
        for s in graph.sets
    ]
    assert " ".join(found) == GROUPS[name]
    for group_set in graph.sets:
        assert len(set(graph.exact[group_set.groups].tolist())) == 1


@pytest.mark.parametrize("name", zoo.ZOO)
def test_masked_and_slim_agree(name):
    model, captured, graph = zoo.analyzed(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng = np.random.default_rng(len(name))
    for trial in range(3):
        plan = graph.plan(zoo.random_removal(graph, rng, branches=trial == 2))
        removed = graph.removed_by(plan)
        for source in (model, captured):
            slimmed = slim(source, plan, model.example_inputs(), graph=graph, tolerance=1e-9)
            inputs = model.example_inputs(3)
            assert worst(outputs(mask(source, plan), inputs), outputs(slimmed, inputs)) < 1e-9
            if not removed.any():
                continue
            if not graph.fates(removed):
                assert sum(p.numel() for p in slimmed.parameters()) < sum(p.numel() for p in source.parameters())
                if source is captured or name not in FIXED_SIZES:
                    assert type(slimmed).__name__ == type(source).__name__
        again = analyze(slimmed)
        everything = again.all_kept()
        assert again.cost.macs(everything) == graph.cost.macs(~removed)
        if not graph.fates(removed):
            assert again.cost.params(everything) == graph.cost.params(~removed)
            assert again.cost.params(everything) == sum(p.numel() for p in slimmed.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name, groups in GROUPS.items() if "~" in groups])
def test_what_is_called_inexact_is(name, caplog):
    """Removing an inexact set changes the outputs, which slimming says, naming the operator."""
    model, _, graph = zoo.analyzed(name)
    for group_set in graph.sets:
        if graph.exact[group_set.groups].all():
            continue
        plan = graph.plan(np.isin(np.arange(graph.n_groups), group_set.groups[:-1]))
        caplog.clear()
        slimmed = slim(model, plan, model.example_inputs(), graph=graph, tolerance=1e-9)
        inputs = model.example_inputs(3)
        expected, found = outputs(mask(model, plan), inputs), outputs(slimmed, inputs)
        assert worst(expected, found) > 1e-6
        assert all(torch.isfinite(out).all() for out in found)
        reason = graph.why_inexact(int(group_set.groups[0]))
        assert reason is not None
        assert f"exact ({reason}): the slim model differs" in caplog.text


@pytest.mark.parametrize("name", ["Residual", "InvertedResidual", "GroupedMany", "Csp", "AttentionSdpa", "Dropouts"])
def test_a_slim_model_trains_and_is_exported_again(name):
    model, captured, graph = zoo.analyzed(name)
    rng = np.random.default_rng(1)
    plan = graph.plan(zoo.random_removal(graph, rng))
    for source in (model, captured):
        slimmed = slim(source, plan, model.example_inputs(), graph=graph).train()
        optimizer = torch.optim.SGD(slimmed.parameters(), lr=0.01)
        before = [p.detach().clone() for p in slimmed.parameters()]
        loss = sum(out.square().mean() for out in pytree.tree_leaves(slimmed(*model.example_inputs(4))))
        loss.backward()
        optimizer.step()
        assert all(p.grad is not None for p in slimmed.parameters())
        assert any(not torch.equal(p, b) for p, b in zip(slimmed.parameters(), before, strict=True))
        slimmed.eval()
        shapes = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(slimmed, model.example_inputs(), dynamic_shapes=shapes)
        inputs = model.example_inputs(5)
        assert worst(outputs(slimmed, inputs), outputs(program.module(), inputs)) < 1e-12


@pytest.mark.parametrize("name", ["Residual", "ShuffleBatch", "Csp", "Buffers"])
def test_a_slim_graph_is_cut_further(name):
    """As during training: cut, analyze again, cut again; the result is that of one cut."""
    model, captured, graph = zoo.analyzed(name)
    rng = np.random.default_rng(2)
    current = captured
    for _ in range(3):
        graph = analyze(current)
        removed = zoo.random_removal(graph, rng, share=0.2)
        masked = mask(current, graph.plan(removed))
        current = slim(current, graph.plan(removed), graph=graph, tolerance=1e-9)
        inputs = model.example_inputs(5)
        assert worst(outputs(masked, inputs), outputs(current, inputs)) < 1e-9
    assert graph.cost.params(graph.all_kept()) < zoo.analyzed(name)[2].cost.params(zoo.analyzed(name)[2].all_kept())


@pytest.mark.parametrize("name", ["Residual", "SqueezeExcite", "Dense", "Mlp"])
def test_decomposed_programs_are_cut_too(name):
    """Programs in core ATen operators, as other tools write them."""
    model, _, _ = zoo.analyzed(name)
    program = torch.export.export(model, model.example_inputs(), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    captured = capture(program.run_decompositions())
    graph = analyze(captured)
    assert graph.n_groups == zoo.analyzed(name)[2].n_groups
    plan = graph.plan(zoo.random_removal(graph, np.random.default_rng(3)))
    slimmed = slim(captured, plan, graph=graph, tolerance=1e-9)
    inputs = model.example_inputs(3)
    assert worst(outputs(mask(captured, plan), inputs), outputs(slimmed, inputs)) < 1e-9

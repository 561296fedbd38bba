"""Whatever the network: the slim model computes what the masked one does, and costs what was counted."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import zoo
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from random_networks import OPERATORS, UNKNOWN, RandomNetwork, Recipe

import graphprune as gp
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.cut import cut_graph, named_tensors
from graphprune.passes.fx.slim import mask, slim

NUMBERS = st.integers(0, 999)
RECIPES = st.lists(st.tuples(st.sampled_from(OPERATORS), NUMBERS, NUMBERS, NUMBERS), min_size=2, max_size=12)
NETWORKS = settings.get_profile("networks")


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))


def check(recipe: Recipe, seed: int) -> None:
    model = zoo.randomize(RandomNetwork(recipe), seed).double().eval()
    note(repr(model))
    captured = capture(model, (batch(2),))
    graph = analyze(captured)
    assert graph.unknown == {}
    rng = np.random.default_rng(seed)
    event("has groups" if graph.n_groups else "has no groups")
    for branches in (False, True):
        plan = graph.plan(zoo.random_removal(graph, rng, branches=branches))
        removed = graph.removed_by(plan)
        event(f"removes {'branches' if graph.fates(removed) else 'channels' if removed.any() else 'nothing'}")
        note(f"removed {np.flatnonzero(removed).tolist()} of {graph.sets}")
        for source in (model, captured):
            slimmed = slim(source, plan, (batch(2),), graph=graph, tolerance=1e-9)
            with torch.no_grad():
                expected, found = mask(source, plan)(batch(3)), slimmed(batch(3))
            assert expected.shape == found.shape
            assert difference(expected, found) < 1e-9
        again = analyze(slimmed)
        assert again.cost.macs(again.all_kept()) == graph.cost.macs(~removed)
        if not graph.fates(removed):
            assert again.cost.params(again.all_kept()) == graph.cost.params(~removed)
    removed = zoo.random_removal(graph, rng, inexact=True)
    plan = graph.plan(removed)
    with torch.no_grad():
        out = cut_graph(graph, plan, removed, named_tensors(mask(captured, plan)))(batch(3))
    assert out.shape == (3, 3)


def check_unknown(recipe: Recipe, seed: int) -> None:
    """Nothing that an operator without a rule touches goes; it is named and counted; the rest is exact."""
    model = zoo.randomize(RandomNetwork(recipe), seed).double().eval()
    note(repr(model))
    captured = capture(model, (batch(2),))
    graph = analyze(captured)
    used = sum("blur" in str(node.target) for node in captured.graph.nodes)
    assert graph.unknown == {"zoo.blur.default": used}
    plan = graph.plan(zoo.random_removal(graph, np.random.default_rng(seed), branches=True))
    for source in (model, captured):
        slimmed = slim(source, plan, (batch(2),), graph=graph, tolerance=1e-9)
        with torch.no_grad():
            assert difference(mask(source, plan)(batch(3)), slimmed(batch(3))) < 1e-9
    event("has groups" if graph.n_groups else "has no groups")


def check_onnx(recipe: Recipe, seed: int, path: Path) -> None:
    """The file of the slim network computes what the masked one does."""
    model = zoo.randomize(RandomNetwork(recipe), seed).eval()
    inputs = (batch(2).float(),)
    graph = gp.trace(model, inputs)
    plan = graph.plan(zoo.random_removal(graph, np.random.default_rng(seed), branches=True))
    slimmed = gp.slim(model, plan, inputs, graph=graph)
    note(repr(model))
    gp.export_onnx(slimmed, inputs, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch(3).float().numpy()})
    with torch.no_grad():
        expected = gp.mask(model, plan)(batch(3).float())
    assert difference(expected, torch.from_numpy(found)) < 1e-3  # float32, and onnxruntime adds up in another order


@settings(NETWORKS, max_examples=8)
@given(RECIPES, st.integers(0, 11), st.integers(0, 9))
def test_an_operator_without_a_rule_freezes_and_is_named(recipe, place, seed):
    check_unknown([*recipe[:place], (UNKNOWN, place, 0, 0), *recipe[place:]], seed)


@settings(NETWORKS, max_examples=2)
@given(RECIPES, st.integers(0, 9))
def test_the_onnx_file_of_the_slim_agrees(tmp_path_factory, recipe, seed):
    check_onnx(recipe, seed, tmp_path_factory.mktemp("onnx") / "slim.onnx")


@pytest.mark.slow
@settings(NETWORKS, max_examples=100, derandomize=False)
@given(RECIPES, st.integers(0, 9))
def test_the_onnx_files_of_many_agree(tmp_path_factory, recipe, seed):
    check_onnx(recipe, seed, tmp_path_factory.mktemp("onnx") / "slim.onnx")


@settings(NETWORKS, max_examples=16)
@given(RECIPES, st.integers(0, 9))
def test_masked_and_slim_agree(recipe, seed):
    check(recipe, seed)


@pytest.mark.slow
@settings(NETWORKS, max_examples=2000, derandomize=False)
@given(RECIPES, st.integers(0, 9))
def test_masked_and_slim_agree_on_many(recipe, seed):
    check(recipe, seed)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(RECIPES)
def test_every_recipe_is_a_network_that_runs(recipe):
    model = RandomNetwork(recipe).double()
    with torch.no_grad():
        assert model(batch(2)).shape == (2, 3)
    assert repr(model).count("\n") == len(model.lines) + 1


def test_a_wrong_cut_would_be_noticed():
    """The comparison can fail: one index of one consumer is shifted."""
    model = zoo.randomize(RandomNetwork([("conv", 0, 0, 1)]), 0).double().eval()
    graph = analyze(capture(model, (batch(2),)))
    right = graph.plan(np.arange(graph.n_groups) == 0)
    slimmed = slim(model, right, (batch(2),), graph=graph)
    wrong = mask(model, graph.plan(np.arange(graph.n_groups) == 1))
    with torch.no_grad():
        assert difference(wrong(batch(3)), slimmed(batch(3))) > 1e-3

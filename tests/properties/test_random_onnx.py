"""Whatever the ONNX graph: what is dead is found, the rest computes the same; whatever the damage: one line is said."""

import gc
import logging

import numpy as np
import onnx
import pytest
from builder import run
from corrupt_onnx import KINDS, corrupted
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from onnx_checks import Broken, check_corrupted, check_valid, compare, signature
from random_onnx import OPERATORS, OPSETS, random_model, random_recipe

NUMBERS = st.integers(0, 999)
RECIPES = st.lists(st.tuples(st.sampled_from(OPERATORS), NUMBERS, NUMBERS, NUMBERS), min_size=2, max_size=10)
GRAPHS = (RECIPES, st.integers(0, 99), st.sampled_from(OPSETS), st.booleans())
SETTINGS = settings(settings.get_profile("networks"), max_examples=12)


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_collect():
    """Slimming collects garbage to keep its peak of memory low; among all that torch holds, that takes most time."""
    gc.collect()
    gc.freeze()
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    gc.unfreeze()


@SETTINGS
@given(*GRAPHS)
def test_dead_channels_go_and_nothing_else_changes(tmp_path_factory, recipe, seed, opset, spatial):
    model = random_model(recipe, seed, opset, spatial)
    note(onnx.printer.to_text(model))
    found = check_valid(model, tmp_path_factory.mktemp("graph"), seed)
    event("removes channels" if found["removed"] else "has nothing to remove")


@pytest.mark.slow
@settings(SETTINGS, max_examples=500, derandomize=False)
@given(*GRAPHS)
def test_dead_channels_go_in_many_graphs(tmp_path_factory, recipe, seed, opset, spatial):
    check_valid(random_model(recipe, seed, opset, spatial), tmp_path_factory.mktemp("graph"), seed)


@pytest.mark.parametrize("at", range(len(KINDS)))
def test_damaged_files_are_refused_in_one_line(tmp_path, at):
    for seed in (at, at + len(KINDS)):
        rng = np.random.default_rng(seed)
        model = random_model(random_recipe(rng, 4), seed, int(rng.choice(OPSETS)))
        kind, content = corrupted(model, seed)
        assert kind == KINDS[at]
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert check_corrupted(content, folder).startswith(("refused: ", "slimmed"))


@settings(SETTINGS, max_examples=40)
@given(*GRAPHS)
def test_every_recipe_is_a_model_that_runs(recipe, seed, opset, spatial):
    model = random_model(recipe, seed, opset, spatial)
    onnx.checker.check_model(model, full_check=True)
    (y,) = run(model, {"x": np.ones((2, 3, 8, 8), np.float32)})
    assert y.shape == (2, 3)


def test_the_checks_can_fail(tmp_path):
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    onnx.save(random_model([("conv", 0, 0, 1)], 0), one)
    onnx.save(random_model([("conv", 0, 0, 1)], 1), other)
    with pytest.raises(Broken, match="differs by"):
        compare(one, other)
    with pytest.raises(Broken, match="the producer is a test"):
        signature(one, other)
    changed = onnx.load(one)
    changed.doc_string = "another"
    onnx.save(changed, other)
    with pytest.raises(Broken, match="text changed"):
        signature(one, other)

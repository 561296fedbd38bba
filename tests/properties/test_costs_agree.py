"""One number of multiply-accumulates and of parameters, whoever counts: the analysis of a network or of its file."""

import logging

import numpy as np
import onnx
import pytest
import torch
import zoo
from hypothesis import given, note, settings
from hypothesis import strategies as st
from random_onnx import OPERATORS, OPSETS, random_model

import graphprune as gp
from graphprune.errors import UnsupportedModelError, VerificationError
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import free_sizes, load_model

NUMBERS = st.integers(0, 999)
RECIPES = st.lists(st.tuples(st.sampled_from(OPERATORS), NUMBERS, NUMBERS, NUMBERS), min_size=2, max_size=10)

#: Of each kind that has a formula of its own; all others take minutes.
SOME = ("ResidualPad", "Transposed", "Einsum", "GroupedQueries", "Cells")

#: The exporter unrolls a plain RNN, whose first step multiplies zeros by weights: that is done once.
UNROLLED = {"RecurrentState"}


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def check(name, path):
    model = zoo.build(name, torch.float32)
    try:
        gp.export_onnx(model, model.example_inputs(), path)
    except (UnsupportedModelError, VerificationError) as error:
        pytest.skip(f"no file can be made of it: {error}")
    network, of_file, counted = gp.trace(model, model.example_inputs()), trace_onnx(path), onnx_cost(path)
    if not any("unknown sizes" in kind for kind in of_file.unknown):
        assert (round(of_file.cost.dense["macs"]), of_file.uncounted) == (counted.macs, counted.uncounted)
        assert (of_file.cost.dense["macs"] == network.cost.dense["macs"]) == (name not in UNROLLED)
    assert of_file.cost.dense["params"] == counted.params


@pytest.mark.parametrize("name", SOME)
def test_a_network_costs_what_its_file_does(tmp_path, name):
    check(name, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_network_costs_what_its_file_does(tmp_path, name):
    check(name, tmp_path / "net.onnx")


@settings(settings.get_profile("networks"), max_examples=20)
@given(RECIPES, st.integers(0, 99), st.sampled_from(OPSETS), st.booleans())
def test_any_file_costs_what_its_analysis_says(tmp_path_factory, recipe, seed, opset, spatial):
    model = random_model(recipe, seed, opset, spatial)
    note(onnx.printer.to_text(model))
    path = tmp_path_factory.mktemp("cost") / "net.onnx"
    onnx.save(model, path)
    loaded, shapes = load_model(path), {"x": (0, 3, 8, 8)}
    graph, counted = trace_onnx(loaded, sizes=free_sizes(loaded, shapes)), onnx_cost(path, shapes=shapes)
    if not any("unknown sizes" in kind for kind in graph.unknown):
        assert (round(graph.cost.dense["macs"]), graph.uncounted) == (counted.macs, counted.uncounted)
    assert round(graph.cost.dense["params"]) == counted.params


def test_what_is_cut_costs_what_the_cut_file_does(tmp_path):
    model = zoo.build("GroupedMany", torch.float32)
    gp.export_onnx(model, model.example_inputs(), tmp_path / "net.onnx")
    graph = trace_onnx(tmp_path / "net.onnx")
    plan = gp.plan(graph, ratio=0.5)
    gp.slim_onnx(tmp_path / "net.onnx", tmp_path / "slim.onnx", plan)
    counted, kept = onnx_cost(tmp_path / "slim.onnx"), ~graph.removed_by(plan)
    assert kept.sum() < graph.n_groups
    assert (counted.macs, counted.params) == (round(graph.cost.macs(kept)), graph.cost.params(kept))
    assert np.isclose(counted.macs, trace_onnx(tmp_path / "slim.onnx").cost.dense["macs"])

"""Whole runs on widths that a search has chosen, with and without the 3-sigma pass."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from reporting import Log
from sklearn.datasets import load_digits
from torch import nn

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.formats.sparse_storage import StoredSparse
from graphprune.passes.errors import MissedBudgetError

SETTINGS = gp.CompressConfig(
    epochs=2,
    batch_size=32,
    flip=False,
    crop=False,
    precision="float32",
    threads=1,
    holdout=20,
    eval_every=1000,
    macs=0.5,
    search_evaluations=8,
    search_images=40,
)
QUICK = gp.BenchmarkOptions(seconds=0)


def digits(number=200):
    pixels, _ = load_digits(return_X_y=True)
    pixels = pixels[:number].reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return ImageSource(pixels, Preprocess.of((8, 8), 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net(torch.from_numpy(digits().batch(slice(0, 64))))
    return net.eval()


@pytest.fixture(scope="module")
def combined(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("combined") / "out"
    log = Log()
    config = dataclasses.replace(SETTINGS, recipe="combined", policy="bee-colony", sigma=1.5)
    return gp.compress(model, digits(), config=config, output=out, benchmark=QUICK, reporter=log), log, out


def test_the_widths_that_were_found_are_those_of_the_result(combined, model):
    result, log, out = combined
    assert "searching an allocation" in log.stages
    assert [done for done, _, _ in log.evaluations] == list(range(1, 9))
    widths = {c["set"]: c["slim"] for c in result.metrics["channels"]}
    assert json.loads((out / "search.json").read_text())["format"] == 1
    assert (out / "search.svg").read_text().startswith("<svg")
    assert result.metrics["reached"]["macs"] <= 0.5
    assert 0 < widths["0"] <= 12
    assert 0 < widths["3"] <= 24


def test_what_is_left_of_the_linear_layers_is_sparse_and_told(combined):
    result, _, out = combined
    facts = result.metrics["sparse_weights"]["slim"]
    assert set(facts["layers"]) == {"8.weight", "10.weight"}
    for name, layer in facts["layers"].items():
        tensor = result.model.state_dict()[name]
        assert layer == {"weights": tensor.numel(), "left": int(tensor.count_nonzero())}
        assert 0 < layer["left"] < 0.35 * layer["weights"]
    assert facts["stored"]["sparse"]
    assert facts["stored"]["bytes"] == (out / "slim.onnx").stat().st_size < facts["stored"]["bytes_dense"]
    assert len(onnx.load(out / "slim.onnx").graph.sparse_initializer) == len(facts["stored"]["sparse"])
    assert "weights of linear layers are not zero; stored sparse" in str(result)


def test_the_journal_of_a_search_serves_the_next_run(combined, model, tmp_path):
    result, _, out = combined
    again = tmp_path / "out"
    again.mkdir()
    (again / "search.json").write_bytes((out / "search.json").read_bytes())
    config = dataclasses.replace(SETTINGS, recipe="combined", policy="bee-colony", sigma=1.5)
    second = gp.compress(model, digits(), config=config, output=again, benchmark=QUICK)
    assert second.plan.to_dict()["removed"] == result.plan.to_dict()["removed"]
    assert json.loads((again / "search.json").read_text()) == json.loads((out / "search.json").read_text())


@pytest.mark.slow
def test_a_policy_that_searches_alone_leaves_linear_weights_alone(model):
    result = gp.compress(model, digits(), config=dataclasses.replace(SETTINGS, policy="random"), benchmark=QUICK)
    assert "sparse_weights" not in result.metrics
    assert result.model.state_dict()["8.weight"].all()
    assert result.metrics["reached"]["macs"] <= 0.5


@pytest.mark.slow
def test_the_linear_layers_alone_can_be_thinned(model):
    config = dataclasses.replace(SETTINGS, macs=None, sigma=1.5)
    metrics = gp.compress(model, digits(), config=config, benchmark=QUICK).metrics
    widths = {c["set"]: (c["dense"], c["slim"]) for c in metrics["channels"]}
    assert widths["0"] == (12, 12)
    assert widths["3"] == (24, 24)
    assert metrics["models"][1]["stored_weights"] < 0.4 * metrics["models"][0]["stored_weights"]
    assert all(
        layer["left"] < 0.35 * layer["weights"] for layer in metrics["sparse_weights"]["slim"]["layers"].values()
    )


def test_a_budget_of_parameters_counts_what_is_left_of_linear_layers(model):
    config = dataclasses.replace(SETTINGS, macs=None, params=0.2, sigma=1.5)
    metrics = gp.compress(model, digits(), config=config, benchmark=QUICK).metrics
    dense, slim = metrics["models"]
    assert 0.19 <= slim["params"] / dense["params"] <= 0.2
    assert metrics["reached"]["params"] == pytest.approx(slim["params"] / dense["params"], rel=0.01)
    widths = {c["set"]: (c["dense"], c["slim"]) for c in metrics["channels"]}
    assert widths["3"][1] > 12  # and so the convolutions have to give little


@pytest.mark.slow
def test_weights_that_the_file_holds_after_all_are_told_as_a_missed_budget(model, monkeypatch):
    monkeypatch.setattr(
        "graphprune.delivery.deliver.store_sparse", lambda path, inputs: StoredSparse((), 1, 1, "not loaded")
    )
    config = dataclasses.replace(SETTINGS, macs=None, params=0.2, sigma=1.5)
    with pytest.raises(MissedBudgetError, match=r"slim\.onnx has 0\.\d+ of the parameters, not 0\.2") as caught:
        gp.compress(model, digits(), config=config, benchmark=QUICK)
    dense, slim = caught.value.result.metrics["models"]
    assert caught.value.result.metrics["reached"]["params"] == slim["params"] / dense["params"] > 0.25


@pytest.mark.slow
def test_every_budget_of_a_family_has_its_own_search(model, tmp_path):
    config = dataclasses.replace(SETTINGS, macs=(0.7, 0.5), n_students=2, policy="random")
    gp.compress(model, digits(), config=config, output=tmp_path / "out", benchmark=QUICK)
    found = sorted(path.name for path in (tmp_path / "out").glob("search*"))
    assert found == [f"search-macs{share}.{kind}" for share in ("0.5", "0.7") for kind in ("json", "svg")]

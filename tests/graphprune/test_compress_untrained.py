"""Compression without a training: chosen and fitted in closed form, delivered like any other."""

import json

import numpy as np
import pytest
import torch
from reporting import Log
from sklearn.datasets import load_digits
from torch import nn
from torch.ao import quantization as ao
from torch.nn import functional as F

import graphprune as gp
from graphprune.cli import main
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import BudgetError, UsageError

SETTINGS = gp.CompressConfig(epochs=0, threads=1)
QUICK = gp.BenchmarkOptions(seconds=0)


class Net(nn.Module):
    """A trunk with one block, and channels that resemble each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.outer(F.relu(self.inner(x)))).mean((2, 3)))


def digits(number=400):
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels[:number].reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return ImageSource(
        pixels, Preprocess.of((8, 8), 1), labels=labels[:number], class_names=[str(i) for i in range(10)]
    )


@pytest.fixture(scope="module")
def model():
    net = Net().eval()
    with torch.no_grad():  # answers that differ between digits
        pooled = []
        hook = net.head.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
        net(torch.from_numpy(digits().batch(slice(0, None))))
        hook.remove()
        net.head.weight /= pooled[0].std(0)
        net.head.bias.copy_(-net.head.weight @ pooled[0].mean(0))
    return net


def test_a_budget_is_met_without_a_training_and_the_files_are_those_of_any_run(model, tmp_path):
    log = Log()
    result = gp.compress(
        model, digits(), macs=0.5, config=SETTINGS, benchmark=QUICK, output=tmp_path / "out", reporter=log
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["reached"]["macs"] <= 0.5
    assert metrics["data"]["held_out"] == 100
    assert metrics["reconstruction"]["images"] == 300
    assert "steps" not in metrics
    assert {layer["outcome"] for layer in metrics["reconstruction"]["layers"]["0"]} >= {"fitted"}
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"dense.onnx", "slim.onnx", "slim.pt2", "plan.json"}
    assert "fitting in closed form" in log.stages
    assert "training" not in log.stages
    assert log.parts[-1][0] <= log.parts[-1][1]
    graph = gp.trace(model, (torch.zeros(2, 1, 8, 8),))
    plain = gp.slim(model, gp.plan(graph, macs=0.5, importance="l2"), (torch.zeros(2, 1, 8, 8),))
    held = torch.from_numpy(digits(800).batch(slice(400, 800)))
    with torch.no_grad():
        dense, fitted, cut = (net(held).argmax(1) for net in (model, result.model, plain))
    assert (fitted == dense).float().mean() > 0.1 + (cut == dense).float().mean()


def test_a_family_of_budgets_is_fitted_one_by_one(model):
    result = gp.compress(model, digits(), macs=(0.7, 0.4), config=SETTINGS, benchmark=QUICK)
    assert set(result.family) == {"slim-macs0.7", "slim-macs0.4"}
    assert set(result.metrics["reconstruction"]["layers"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({"sigma": 3.0}, {}, "sigma"),
        ({}, {"resume": True}, "nothing to go on with"),
        ({}, {"macs": None}, "no budget"),
    ],
)
def test_what_only_a_training_can_do_is_refused(model, tmp_path, settings, arguments, said):
    config = gp.CompressConfig(epochs=0, **settings)
    with pytest.raises(UsageError, match=said):
        gp.compress(model, digits(), **{"macs": 0.5, "output": tmp_path / "out", "config": config, **arguments})


def test_a_budget_out_of_reach_is_refused(model):
    with pytest.raises(BudgetError):
        gp.compress(model, digits(), macs=0.0001, config=SETTINGS, benchmark=QUICK)


def test_the_command_takes_no_epochs(model, tmp_path, capsys):
    torch.export.save(
        torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)),
        tmp_path / "model.pt2",
    )
    source = digits(260)
    np.save(tmp_path / "images.npy", source.pixels)
    options = (
        f"{tmp_path}/model.pt2 --data {tmp_path}/images.npy --mean 0 --std 1 --macs 0.6 --epochs 0 "
        f"--threads 1 --benchmark-seconds 0 -o {tmp_path}/out".split()
    )
    assert main(["compress", *options]) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "slim.onnx").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epochs", [0, 8])
def test_a_network_that_was_trained_with_fake_quantization(tmp_path, epochs):
    """What it rounds is compared as it is written, since kernels in bytes saturate on some processors."""
    net = Net().train()
    net.qconfig = ao.QConfig(
        activation=ao.FakeQuantize.with_args(observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
        weight=ao.default_per_channel_weight_fake_quant,
    )
    net = ao.prepare_qat(net)
    images = digits(96)
    for _ in range(3):
        net(torch.from_numpy(images.batch(slice(0, 32))))
    config = gp.CompressConfig(macs=0.6, epochs=epochs, batch_size=16, threads=1, precision="float32")
    log = Log()
    result = gp.compress(net.eval(), images, config=config, output=tmp_path / "out", benchmark=QUICK, reporter=log)
    dense, slim = result.metrics["models"]
    assert slim["macs"] <= 0.6 * dense["macs"]
    assert (tmp_path / "out" / "slim.onnx").exists()

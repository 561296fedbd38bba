"""Dead groups are removed while a student learns, and nothing else changes."""

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.demo import DigitNet
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.training.engine import Engine
from graphprune.training.removal import Removal, carry_over, restore

CONFIG = CompressConfig(
    macs=0.4,
    epochs=2,
    batch_size=32,
    lambda_feature=30.0,
    warmup=0.05,
    sparsify=0.45,
    flip=False,
    precision="float32",
    threads=1,
    holdout=20,
    eval_every=1000,
)


class Residual(nn.Module):
    """Two branches that can go as a whole; the first has biases in front of its normalization, and dropout."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, padding=1)
        )
        self.a.extend([nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Hardswish()])
        self.b = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(), nn.Conv2d(12, 8, 1))
        self.down = nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.a(x)
        x = torch.relu(x + self.b(x))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


class Gated(nn.Module):
    """Channels that are not zero where their weights are (sigmoid), a gate, channels taken apart and joined again."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.depth = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.gate = nn.Linear(16, 4), nn.Linear(4, 16)
        self.narrow, self.head = nn.Conv2d(16, 8, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.stem(x)))
        y = torch.nn.functional.silu(self.depth(self.wide(x)))
        scale = torch.sigmoid(self.gate(torch.relu(self.squeeze(y.mean((2, 3))))))
        y = self.narrow(y * scale[..., None, None])
        first, second = torch.cat([x, y], 1).chunk(2, 1)
        return self.head(torch.cat([first.tanh(), second], 1).mean((2, 3)))


@cache
def teacher(kind, dtype=torch.float64):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = kind().train()
    for _ in range(3):
        net(torch.randn(64, 1, 8, 8))
    captured = capture(net.to(dtype).eval(), (torch.randn(2, 1, 8, 8, dtype=dtype),))
    return captured, analyze(captured)


def images(count=300):
    pixels = (load_digits().images[:count, :, :, None] * 15.9).astype(np.uint8)
    return ImageSource(pixels, Preprocess((8, 8), mean=(0.3,), std=(0.35,), channels=1))


def engine(kind, config=CONFIG, **options):
    return Engine(*teacher(kind), images(), config, **options)


def run(kind, config):
    made = engine(kind, config)
    return made, made.run()[0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Residual, {"macs": 0.4}),
        (Residual, {"macs": 0.15, "lambda_feature": 1.0, "lr": 0.05}),
        (Residual, {"macs": 0.2, "sensitivity": "l1", "course": "one-shot"}),
        (Gated, {"macs": 0.5}),
        (Gated, {"params": 0.3, "grad_clip": 0.5}),
        (Residual, {"macs": 0.4, "sensitivity": "fpgm"}),
        (Residual, {"macs": 0.4, "sensitivity": "bn_scale"}),
    ],
)
def test_the_result_is_that_of_a_run_that_removes_at_the_end(kind, settings):
    config = dataclasses.replace(CONFIG, **settings)
    made, result = run(kind, config)
    plain, expected = run(kind, dataclasses.replace(config, shrink=False))
    assert (~made.students[0].present).sum() > 0.9 * result.removed.sum()  # not a test of nothing
    assert plain.students[0].present.all()
    assert np.array_equal(result.removed, expected.removed)
    assert result.plan.to_dict() == expected.plan.to_dict()
    graph = made.graph
    for name, values in expected.state_dict.items():
        found = result.state_dict[name]
        if "running" in name:  # of channels that are gone, a network without them has none
            alive = ~np.isin(graph.axes.get((name, 0), np.zeros(0)), np.flatnonzero(expected.removed))
            if alive.size:
                found, values = found[torch.from_numpy(alive)], values[torch.from_numpy(alive)]
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-9)
    for a, b in zip(result.history, expected.history, strict=True):
        assert a.pop("phase") == b.pop("phase")
        assert a == pytest.approx(b, rel=1e-6)


def test_whole_branches_are_gone_from_the_graph_and_still_learn():
    made, result = run(Residual, dataclasses.replace(CONFIG, macs=0.15))
    student = made.students[0]
    emptied = [s.name for s in made.graph.sets if result.removed[s.groups].all()]
    assert emptied
    held = dict(student.module.named_parameters())
    assert not any(f"{name}.weight" in held for name in emptied)
    if "a.0" in emptied:
        assert not torch.equal(
            held["a.4.bias"], teacher(Residual)[0].get_parameter("a.4.bias")[: len(held["a.4.bias"])]
        )


def test_what_a_branch_without_a_bias_leaves_is_cut_with_its_trunk():
    torch.manual_seed(0)
    net = DigitNet(8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    captured = capture(net.eval(), (torch.randn(2, 1, 16, 16),))
    graph = analyze(captured)
    removal, images = Removal(graph, []), torch.randn(4, 1, 16, 16)
    inner = next(s for s in graph.sets if s.bypassed)
    trunk = next(s for s in graph.sets if s.name == "conv1")
    present, module = graph.all_kept(), captured
    for groups in (inner.groups, trunk.groups[::2]):
        before, had = module, present.copy()
        present[groups] = False
        module = removal.cut(present)
        optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (before, module)]
        carry_over(graph, before, optimizers[0], had, module, optimizers[1], present)
        dense = copy.deepcopy(captured)
        dense.load_state_dict(restore(graph, module, present))
        torch.testing.assert_close(module.eval()(images), dense.eval()(images))


def test_steps_get_cheaper():
    made, _ = run(Residual, dataclasses.replace(CONFIG, macs=0.3))
    student = made.students[0]
    assert sum(p.numel() for p in student.module.parameters()) < 0.6 * sum(p.numel() for p in Residual().parameters())
    state = student.optimizer.state
    assert all(state[p]["momentum_buffer"].shape == p.shape for p in student.module.parameters())


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_that_was_cut_resumes_to_the_same_bits(tmp_path, stop):
    config = dataclasses.replace(CONFIG, macs=0.3, checkpoint_steps=1)

    def fail(step, total, loss, cost, phase):
        if step == stop:
            raise StopError

    whole = engine(Residual, config, checkpoint=tmp_path / "whole.pt")
    expected = whole.run()[0]
    stopped = engine(Residual, config, checkpoint=tmp_path / "checkpoint.pt", progress=fail)
    with pytest.raises(StopError):
        stopped.run()
    assert not stopped.students[0].present.all()
    resumed = engine(Residual, config, checkpoint=tmp_path / "checkpoint.pt").run(resume=True)[0]
    assert resumed.history == expected.history
    assert all(torch.equal(value, resumed.state_dict[name]) for name, value in expected.state_dict.items())


def test_a_run_without_removal_is_another_run_to_a_checkpoint(tmp_path):
    from graphprune.passes.errors import UsageError

    engine(Residual, checkpoint=tmp_path / "checkpoint.pt").run()
    with pytest.raises(UsageError, match="cannot resume: `shrink` was True and is now False"):
        engine(Residual, dataclasses.replace(CONFIG, shrink=False), checkpoint=tmp_path / "checkpoint.pt").run(
            resume=True
        )

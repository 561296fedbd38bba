"""Also a program: one of the processes of a run, which writes what it came to."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.training import processes
from graphprune.training.engine import Engine
from graphprune.training.processes import Processes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


def make_engine(batch_size, processes=None, checkpoint=None):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net().train()
    for _ in range(3):
        net(torch.randn(64, 1, 8, 8))
    captured = capture(net.eval(), (torch.randn(2, 1, 8, 8),))
    pixels = (load_digits().images[:300, :, :, None] * 15.9).astype(np.uint8)
    source = ImageSource(pixels, Preprocess((8, 8), mean=(0.3,), std=(0.35,), channels=1))
    config = CompressConfig(
        macs=(0.6, 0.4), n_students=2, epochs=2, batch_size=batch_size, flip=False, precision="float32", threads=1,
        holdout=20, eval_every=1000,
    )  # fmt: skip
    return Engine(captured, analyze(captured), source, config, processes=processes, checkpoint=checkpoint)


def test_one_process_is_alone():
    alone = Processes.join()
    assert (alone.rank, alone.world, alone.is_first) == (0, 1, True)
    batch = torch.arange(6)
    assert alone.part(batch) is batch
    assert alone.mean(1.0, 2.5) == [1.0, 2.5]
    assert alone.first("x") == "x"


def test_parts_of_a_batch():
    parts = [Processes(rank, 3).part(torch.arange(6)).tolist() for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_too_many_processes_for_the_images_are_refused():
    with pytest.raises(UsageError, match="fewer than a batch of 200 for each of 2 processes"):
        make_engine(200, Processes(0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_those_of_torch_under_autocast_too(monkeypatch, dtype):
    monkeypatch.setattr(processes, "_sum_over_processes", lambda tensor: tensor)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 1)
    torch.manual_seed(0)
    x, weight, bias = (3 + torch.randn(16, 4, 6, 6)).to(dtype), torch.rand(4), torch.randn(4)
    found, expected = ((torch.zeros(4), torch.ones(4)) for _ in range(2))
    y = processes._batch_norm(x, weight, bias, *found, True, 0.1, 1e-5, False)
    z = torch.ops.aten.batch_norm.default(x, weight, bias, *expected, True, 0.1, 1e-5, False)
    assert y.dtype == dtype
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(found, expected)


def test_statistics_of_instance_norm_are_the_mean_over_processes(monkeypatch):
    other = torch.tensor([4.0, 8.0])
    monkeypatch.setattr(processes.dist, "all_reduce", lambda tensor: tensor.add_(other))
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    x, mean, variance = torch.randn(8, 2, 6, 6), torch.zeros(2), torch.ones(2)
    y = processes._instance_norm(x, None, None, mean, variance, True, 1.0, 1e-5, False)
    torch.testing.assert_close(mean, (x.mean((0, 2, 3)) + other) / 2)
    torch.testing.assert_close(variance, (x.flatten(2).var(2).mean(0) + other) / 2)
    torch.testing.assert_close(y, nn.functional.instance_norm(x))


@pytest.mark.slow
def test_two_processes_come_to_what_one_does_with_the_doubled_batch(tmp_path):
    expected = make_engine(32).run()
    base = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**os.environ, **base, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert (tmp_path / "0.checkpoint").exists()
    assert not (tmp_path / "1.checkpoint").exists()
    for number, result in enumerate(expected):
        first, second = (process[number] for process in found)
        assert first["removed"] == second["removed"] == result.removed.tolist()
        for name, values in result.state_dict.items():
            assert torch.equal(first["state"][name], second["state"][name]), name
            torch.testing.assert_close(first["state"][name], values, rtol=2e-3, atol=2e-4)


def test_the_others_wait_as_long_as_the_first_one_searches(monkeypatch):
    asked = {}
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda kind, **options: asked.update(options, kind=kind))
    processes._initialize(torch.device("cpu"))
    assert asked["kind"] == "gloo"
    assert asked["timeout"].total_seconds() > 24 * 3600


if __name__ == "__main__":
    joined = Processes.join()
    folder = Path(sys.argv[1])
    results = make_engine(16, joined, folder / f"{joined.rank}.checkpoint").run()
    held = [{"removed": r.removed.tolist(), "state": r.state_dict} for r in results]
    torch.save(held, folder / f"{joined.rank}.pt")

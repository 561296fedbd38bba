"""Also a program: `python test_checkpoint.py FILE` runs the compression below and tells every step."""

import dataclasses
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import DataError, ModelLoadError, UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.runtime.precision import Precision
from graphprune.training.checkpoint import load_checkpoint, model_digest, save_checkpoint
from graphprune.training.engine import Engine

CONFIG = CompressConfig(
    macs=0.5, epochs=4, batch_size=64, flip=False, precision="float32", threads=1, checkpoint_steps=5, n_students=2
)


@cache
def teacher(seed):
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1)
    )
    net.extend([nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    net.append(nn.Linear(12, 10))
    captured = capture(net.eval(), (torch.randn(2, 1, 8, 8),))
    return captured, analyze(captured)


def make_engine(path, config=CONFIG, count=500, seed=0, **options):
    pixels = (load_digits().images[:count, :, :, None] * 15.9).astype(np.uint8)
    source = ImageSource(pixels, Preprocess((8, 8), mean=(0.3,), std=(0.35,), channels=1))
    return Engine(*teacher(seed), source, config, checkpoint=path, **options)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.removed, b.removed)
        assert a.plan.to_dict() == b.plan.to_dict()
        assert a.history == b.history
        assert all(torch.equal(v, b.state_dict[k]) for k, v in a.state_dict.items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("whole") / "checkpoint.pt").run()


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 9, 14, 22])  # warm-up, sparsify, the final fade, settle
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(tmp_path, uninterrupted, stop):
    def fail(step, total, loss, cost, phase):
        if step == stop:
            raise StopError

    with pytest.raises(StopError):
        make_engine(tmp_path / "checkpoint.pt", progress=fail).run()
    torch.rand(7)  # whatever else the process draws must not matter
    assert_same(make_engine(tmp_path / "checkpoint.pt").run(resume=True), uninterrupted)


def test_the_memory_layout_that_was_chosen_once_is_kept(tmp_path, monkeypatch):
    layout = Precision(channels_last=True)
    monkeypatch.setattr("graphprune.training.engine.choose_precision", lambda setting, step, device: (layout, {}))
    whole = make_engine(tmp_path / "whole.pt").run()

    def fail(step, total, loss, cost, phase):
        if step == 9:
            raise StopError

    with pytest.raises(StopError):
        make_engine(tmp_path / "checkpoint.pt", progress=fail).run()
    monkeypatch.setattr("graphprune.training.engine.choose_precision", lambda *_: pytest.fail("measured again"))
    assert_same(make_engine(tmp_path / "checkpoint.pt").run(resume=True), whole)


def test_a_run_keeps_to_the_widths_it_began_with_whatever_a_second_search_finds(tmp_path):
    def aimed(kept, progress=None):
        config = dataclasses.replace(CONFIG, n_students=1, policy="random")
        engine = make_engine(tmp_path / "checkpoint.pt", config, progress=progress)
        removed = ~engine.graph.all_kept()
        for group_set, width in zip(engine.graph.sets, kept, strict=True):
            removed[group_set.groups[width:]] = True
        engine.students[0].set.aim(removed)
        return engine

    def fail(step, total, loss, cost, phase):
        if step == 14:
            raise StopError

    whole = aimed((4, 6)).run()
    with pytest.raises(StopError):
        aimed((4, 6), fail).run()
    assert_same(aimed((2, 12)).run(resume=True), whole)


def test_a_killed_process_resumes_to_the_same_bits(tmp_path, uninterrupted):
    path = tmp_path / "checkpoint.pt"
    process = subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 13:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["step"] < 28
    resumed = make_engine(path)
    assert_same(resumed.run(resume=True), uninterrupted)


def test_a_finished_run_resumes_to_its_result(tmp_path, uninterrupted):
    path = tmp_path / "checkpoint.pt"
    make_engine(path).run()
    told = []
    assert_same(make_engine(path, progress=lambda *a: told.append(a)).run(resume=True), uninterrupted)
    assert told == []


def test_ctrl_c_finishes_the_step_and_writes_the_state(tmp_path, uninterrupted):
    def interrupt(step, total, loss, cost, phase):
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "checkpoint.pt"
    config = dataclasses.replace(CONFIG, checkpoint_steps=0, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        make_engine(path, config, progress=interrupt).run()
    assert torch.load(path, weights_only=True)["step"] in (12, 13)
    assert_same(make_engine(path, config).run(resume=True), uninterrupted)


def test_what_an_observer_says_does_not_keep_a_run_from_going_on(tmp_path):
    path, config = tmp_path / "checkpoint.pt", dataclasses.replace(CONFIG, epochs=2)
    make_engine(path, config, observer=lambda _: {"seen": np.mean([1, 0])}).run()
    resumed = make_engine(path, config).run(resume=True)
    assert resumed[0].history[-1]["seen"] == 0.5
    assert type(resumed[0].history[-1]["seen"]) is float


def test_resuming_something_else_is_refused_and_names_what_differs(tmp_path):
    path = tmp_path / "checkpoint.pt"
    make_engine(path, dataclasses.replace(CONFIG, epochs=2)).run()
    with pytest.raises(UsageError, match=r"cannot resume: `lr` was .* and is now 0\.5"):
        make_engine(path, dataclasses.replace(CONFIG, epochs=2, lr=0.5)).run(resume=True)
    with pytest.raises(UsageError, match="made from another model"):
        make_engine(path, dataclasses.replace(CONFIG, epochs=2), seed=1).run(resume=True)
    with pytest.raises(DataError, match="cannot resume with images: images was"):
        make_engine(path, dataclasses.replace(CONFIG, epochs=2), count=490).run(resume=True)


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ModelLoadError, match="there is no checkpoint to resume from"):
        load_checkpoint(path, CONFIG, "")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelLoadError, match="not a readable checkpoint"):
        load_checkpoint(path, CONFIG, "")
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ModelLoadError, match="not a checkpoint of this version"):
        load_checkpoint(path, CONFIG, "")
    save_checkpoint(path, {"fingerprint": CONFIG.fingerprint(), "model": "a", "step": 0})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelLoadError, match="not a readable checkpoint"):
        load_checkpoint(path, CONFIG, "a")


def test_loading_a_checkpoint_runs_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"format": 1, "x": Attack()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelLoadError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", CONFIG, "")
    assert not (tmp_path / "attacked").exists()


def test_the_digest_sees_every_weight():
    net = nn.BatchNorm2d(3)
    before = model_digest(net)
    assert model_digest(net) == before
    net.running_mean[1] = 1e-3
    assert model_digest(net) != before


def tell(step, *_):
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    make_engine(Path(sys.argv[1]), progress=tell).run()

"""Trainings that begin from what was fitted in closed form, from the command to the report."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from reporting import Log

import graphprune as gp
from graphprune.demo import SIDE, DigitNet
from graphprune.passes.errors import UsageError

CONFIG = gp.CompressConfig(
    macs=0.6,
    course="reconstructed",
    epochs=1.6,
    batch_size=16,
    lr=1e-3,
    flip=False,
    crop=False,
    precision="float32",
    threads=1,
)
QUICK = gp.BenchmarkOptions(seconds=0)


def images():
    return np.random.default_rng(0).random((120, 1, SIDE, SIDE), dtype=np.float32)


def own_file(path):
    torch.manual_seed(0)
    gp.export_onnx(DigitNet(width=8).eval(), (torch.zeros(2, 1, SIDE, SIDE),), path)
    return path


def test_the_report_says_what_was_fitted_and_what_became_of_it(tmp_path):
    log = Log()
    file = own_file(tmp_path / "digits.onnx")
    arguments = {"config": CONFIG, "benchmark": QUICK, "reporter": log}
    result = gp.compress(file, images(), macs=(0.7, 0.5), output=tmp_path / "out", **arguments)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    fitted = metrics["reconstruction"]
    assert set(fitted["layers"]) == set(fitted["text"]) == {"0", "1"}
    assert metrics["steps"]["number"] == log.steps[-1][1]
    wanted = ["seeing what every layer computes", "rehearsing", "fitting in closed form", "training"]
    assert [name for name in log.stages if name in wanted] == wanted
    for member, budget in zip(metrics["members"], (0.7, 0.5), strict=True):
        assert member["reached"]["macs"] <= budget
        assert member["quality"]["held_out_agreement"] >= 0
        assert set(member["start"]) == {"agreement", "distance", "is_delivered"}
        assert f"slim-macs{budget:g}: {fitted['text'][str(member['student'])]}, to 108 images" in str(result)
    assert str(result).count("then trained") == 2


def test_it_is_said_where_the_start_is_delivered(tmp_path):
    file = own_file(tmp_path / "digits.onnx")
    config = dataclasses.replace(CONFIG, lr=1e6, grad_clip=0.0, lr_warmup=0.0)
    result = gp.compress(file, images(), config=config, benchmark=QUICK)
    assert result.metrics["start"]["is_delivered"]
    assert result.metrics["quality"]["held_out_agreement"] == result.metrics["start"]["agreement"]
    assert "TRAINING MADE IT WORSE THERE: delivered as it was fitted" in str(result)


def test_a_run_goes_on_without_fitting_again(tmp_path):
    class Impatient(Log):
        def step(self, step, total, loss, cost, phase):
            super().step(step, total, loss, cost, phase)
            if step == 4:
                raise KeyboardInterrupt

    file = own_file(tmp_path / "digits.onnx")
    config = dataclasses.replace(CONFIG, checkpoint_steps=2)
    arguments = {"config": config, "benchmark": QUICK, "output": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        gp.compress(file, images(), reporter=Impatient(), **arguments)
    log = Log()
    resumed = gp.compress(file, images(), resume=True, reporter=log, **arguments)
    assert "fitting in closed form" not in log.stages
    assert log.steps[0][0] in (3, 5)  # it was interrupted before what the fourth step left was written
    assert set(resumed.metrics["reconstruction"]["text"]) == {"0"}
    assert "then trained" in str(resumed)


def test_what_has_to_keep_zeros_is_not_fitted():
    with pytest.raises(UsageError, match="take another course"):
        gp.CompressConfig(macs=0.5, course="reconstructed", sigma=3.0)

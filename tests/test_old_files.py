"""Files that earlier versions have written go on being read: plans, metrics, and the checkpoints of stopped runs.

`old_files/VERSION/` holds what that version wrote of one small network on digits: plan and metrics of a whole run, the
files that they belong to, and the checkpoint of a run that was stopped when it was well under way.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import graphprune as gp
from graphprune.compress import BenchmarkOptions
from graphprune.demo import DigitNet
from graphprune.report.summary import METRICS_SCHEMA, render_metrics
from graphprune.training.checkpoint import SCHEMA as CHECKPOINT_SCHEMA

OLD = Path(__file__).with_name("old_files")
VERSIONS = sorted(folder.name for folder in OLD.iterdir())
#: The settings that the runs were started with.
SETTINGS = {"macs": 0.6, "epochs": 4, "batch_size": 32, "flip": False, "crop": False}
TRAINING = {"precision": "float32", "threads": 1, "device": "cpu"}


def digits() -> np.ndarray:
    """The 128 images that the runs learned from, (128, 16, 16, 1)."""
    return (np.kron(load_digits().images[:128], np.ones((2, 2))) * 15.9).astype(np.uint8)[..., None]


def network(version: str) -> DigitNet:
    net = DigitNet(width=4).eval()
    net.load_state_dict(load_file(OLD / version / "net.safetensors"))
    return net


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_plan_cuts_the_network_and_the_file_that_it_was_made_for(version, tmp_path):
    plan = gp.PruningPlan.load(OLD / version / "plan.json")
    old = ort.InferenceSession(OLD / version / "slim.onnx")
    widths = {name: len(kept) for (name, dim), kept in plan.gone.items() if dim == 0}
    assert widths, "a plan that removes nothing tells nothing"

    slim = gp.slim(network(version), plan)
    sizes = {name: tuple(value.shape) for name, value in slim.named_parameters()}
    dense = {name: tuple(value.shape) for name, value in network(version).named_parameters()}
    for name, gone in widths.items():
        if name in sizes:
            assert sizes[name][0] == dense[name][0] - gone, name

    gp.slim_onnx(OLD / version / "dense.onnx", tmp_path / "slim.onnx", plan=OLD / version / "plan.json")
    images = torch.from_numpy(digits()[:4]).permute(0, 3, 1, 2).float().numpy() / 255
    new = ort.InferenceSession(tmp_path / "slim.onnx").run(None, {old.get_inputs()[0].name: images})
    assert new[0].shape == (4, 10)
    assert gp.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("version", VERSIONS)
def test_old_metrics_are_shown(version):
    metrics = json.loads((OLD / version / "metrics.json").read_text())
    table = render_metrics(metrics)
    assert "MACs" in table
    assert all(model["name"] in table for model in metrics["models"])
    assert f"{metrics['quality']['agreement']:.2%}".replace("%", " %") in table


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_that_an_old_version_has_left_goes_on_to_its_end(version, tmp_path):
    for name in ("checkpoint.pt", "settings.json"):
        shutil.copy(OLD / version / name, tmp_path / name)
    np.save(tmp_path / "digits.npy", digits())
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert before["format"] <= CHECKPOINT_SCHEMA
    images = str(tmp_path / "digits.npy")
    result = gp.compress(
        network(version),
        images,
        example_inputs=(torch.zeros(1, 1, 16, 16),),
        config=gp.CompressConfig(**SETTINGS, **TRAINING),
        benchmark=BenchmarkOptions(seconds=0),
        output=tmp_path,
        resume=True,
    )
    dense, slim = result.metrics["models"]
    assert result.metrics["schema"] == METRICS_SCHEMA
    assert slim["macs"] <= 0.6 * dense["macs"]
    done = before["history"][0] if isinstance(before["history"][0], list) else before["history"]
    assert len(done) > 2
    assert result.metrics["history"][: len(done)] == [pytest.approx(point) for point in done]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_is_not_resumed_with_a_setting_that_it_did_not_have(version, tmp_path):
    """Settings that came later count as left at their default, so another value is another run."""
    fingerprint = torch.load(OLD / version / "checkpoint.pt", weights_only=True)["fingerprint"]
    gp.CompressConfig(**SETTINGS, **TRAINING).refuse_resume_from(fingerprint)
    without = {name: value for name, value in fingerprint.items() if name != "mix"}
    gp.CompressConfig(**SETTINGS, **TRAINING).refuse_resume_from(without)
    with pytest.raises(gp.UsageError, match=r"`mix` was 0\.0 and is now 0\.25"):
        gp.CompressConfig(**SETTINGS, **TRAINING, mix=0.25).refuse_resume_from(without)

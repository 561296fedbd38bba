"""examples/train_reference.py on a few handwritten digits."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import graphprune as gp
from graphprune.data.batches import TrainingBatches
from graphprune.formats.loading import load_model
from graphprune.models import resnet20

SCRIPT = Path(__file__).parent.parent / "examples" / "train_reference.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    pixels, labels = load_digits(return_X_y=True)
    for at in range(120):
        home = root / str(labels[at])
        home.mkdir(exist_ok=True)
        image = Image.fromarray((pixels[at].reshape(8, 8) * 15.9).astype(np.uint8)).resize((16, 16)).convert("RGB")
        image.save(home / f"{at}.png")
    return root


def train(folder, output, monkeypatch, *options):
    settings = ("--arch", "graphprune.models:resnet20", "--data", str(folder), "--batch-size", "20", "--threads", "1")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *settings, "-o", str(output), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_it_trains_on_images_that_grow_and_measures_at_the_end(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "net.safetensors"
    train(folder, output, monkeypatch, "--epochs", "2", "--sizes", "8,16", "--eval-data", str(folder))
    said = capsys.readouterr().out
    facts = json.loads(output.with_suffix(".json").read_text())
    assert "epoch 2: loss" in said
    assert 0 <= facts["accuracy"] <= 1
    assert facts["images"] == 120
    resnet20().load_state_dict(load_file(output))
    assert not list(tmp_path.glob("*.checkpoint.pt"))


def test_images_that_a_run_holds_out_can_be_left_out_of_its_teachers_training(folder, tmp_path, monkeypatch):
    seen: set[int] = set()
    chosen = TrainingBatches.chosen

    def noted(self, epoch, step):
        positions = chosen(self, epoch, step)
        seen.update(positions.tolist())
        return positions

    monkeypatch.setattr(TrainingBatches, "chosen", noted)
    output = tmp_path / "net.safetensors"
    train(folder, output, monkeypatch, "--leave-out", "20", "--seed", "3", "--epochs", "1")
    assert json.loads(output.with_suffix(".json").read_text())["images"] == 100
    rest, held_out = gp.load_images(folder).split(20 / 120, 3)
    assert seen == set(rest.indices.tolist())
    assert not seen & set(held_out.indices.tolist())


def test_what_is_frozen_stays_as_it_was_taken_over(folder, tmp_path, monkeypatch, capsys):
    torch.manual_seed(3)
    before = {name: value for name, value in resnet20().state_dict().items() if "linear" not in name}
    save_file(before, tmp_path / "start.safetensors")
    options = ("--start", str(tmp_path / "start.safetensors"), "--freeze", "conv*", "bn*", "layer*", "--epochs", "1")
    train(folder, tmp_path / "net.safetensors", monkeypatch, *options)
    assert f"{len(before)} of {len(before) + 2} tensors taken over" in capsys.readouterr().out
    after = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["linear.bias"].abs().sum() > 0


def tied():
    """Two layers with one weight, as `--arch` finds it."""
    first, second = torch.nn.Linear(768, 768), torch.nn.Linear(768, 768)
    second.weight = first.weight
    return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), second)


def test_weights_that_two_layers_share_are_written_once(folder, tmp_path, monkeypatch):
    output = tmp_path / "net.safetensors"
    monkeypatch.chdir(Path(__file__).parent)
    train(folder, output, monkeypatch, "--arch", "test_train_reference:tied", "--epochs", "1", "--lr", "0.01")
    assert sorted(load_file(output)) == ["1.bias", "1.weight", "3.bias"]
    load_model(output, arch="test_train_reference:tied")


@pytest.mark.parametrize("change", ["missing", "order"])
def test_other_classes_are_refused_before_the_training(folder, tmp_path, monkeypatch, change):
    judged = tmp_path / "judged"
    shutil.copytree(folder, judged)
    if change == "missing":
        shutil.rmtree(judged / "7")
    else:
        load = gp.load_images

        def swapped(path, **options):
            source = load(path, **options)
            if Path(path) == judged:
                source.class_names = source.class_names[::-1]
            return source

        monkeypatch.setattr(gp, "load_images", swapped)
    message = {"missing": "7 is only in one of them", "order": "they come in another order"}[change]
    with pytest.raises(SystemExit, match=f"its classes are not those of .*: {message}"):
        train(folder, tmp_path / "net.safetensors", monkeypatch, "--epochs", "1", "--eval-data", str(judged))
    assert [file.name for file in tmp_path.iterdir()] == ["judged"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sizes", "8,12"), "give whole numbers that end with 16"),
        (("--freeze", "*"), "--freeze leaves nothing to learn"),
        (("--start", "missing.safetensors"), "no such file: missing"),
        (("--sizes", "8,12,14,16", "--epochs", "3"), "are more than the 3 epochs"),
        (("--leave-out", "120"), "--leave-out 120: give a number between 0 and 120"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, monkeypatch, options, message):
    with pytest.raises(SystemExit, match=message) as caught:
        train(folder, tmp_path / "net.safetensors", monkeypatch, *options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())

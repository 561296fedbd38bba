import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from reporting import Log
from sklearn.datasets import load_digits
from torch import nn

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.passes.errors import (
    BudgetError,
    DataError,
    UnfinishedError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

SETTINGS = gp.CompressConfig(
    epochs=2, batch_size=32, flip=False, crop=False, precision="float32", threads=1, holdout=20, eval_every=1000
)
QUICK = gp.BenchmarkOptions(seconds=0)


class Net(nn.Module):
    """A trunk of 16 channels with one block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


def digits(start=0, number=200):
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels[start : start + number].reshape(-1, 8, 8, 1).astype(np.float32) / 16
    names = [str(i) for i in range(10)]
    return ImageSource(pixels, Preprocess.of((8, 8), 1), labels=labels[start : start + number], class_names=names)


@pytest.fixture(scope="module")
def model():
    net = Net()
    net(torch.from_numpy(digits().batch(slice(0, 64))))
    return net.eval()


@pytest.fixture(scope="module")
def finished(model):
    """A whole run without an output folder, and what was reported."""
    log = Log()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = gp.compress(
        model,
        digits(),
        macs=0.5,
        config=SETTINGS,
        eval_images=digits(200, 60),
        benchmark=gp.BenchmarkOptions(seconds=0.05),
        reporter=log,
        record={"note": "test"},
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return result, log


def test_the_budget_is_met_and_counted_on_the_file(finished):
    metrics = finished[0].metrics
    dense, slim = metrics["models"]
    assert 0.4 < slim["macs"] / dense["macs"] <= 0.5
    assert metrics["reached"]["macs"] == slim["macs"] / dense["macs"]
    assert slim["params"] == sum(p.numel() for p in finished[0].model.parameters())
    assert dense["params"] == sum(p.numel() for p in Net().parameters())


def test_the_result_is_a_module_that_fits_its_plan(finished, model):
    result = finished[0]
    assert result.output is None
    assert not result.model.training
    x = torch.from_numpy(digits().batch(slice(0, 5)))
    assert result.model(x).shape == (5, 10)
    again = gp.slim(model, result.plan, (x,))  # the plan also fits the class that the user brought
    assert isinstance(again, Net)
    widths = {name: tuple(p.shape) for name, p in result.model.named_parameters()}
    assert widths == {name: tuple(p.shape) for name, p in again.named_parameters()}


def test_the_metrics_tell_everything(finished):
    metrics = finished[0].metrics
    assert metrics["schema"] == 1
    assert metrics["quality"]["images"] == 60
    assert set(metrics["quality"]["accuracy"]) == {"dense", "slim"}
    assert 0 <= metrics["models"][1]["agreement"] <= 1
    assert metrics["models"][0]["latency_ms"]["median"] > 0
    assert metrics["machine"]["cpu"]
    assert metrics["config"]["macs"] == 0.5
    assert metrics["preprocessing"]["image_size"] == [8, 8]
    assert metrics["record"] == {"note": "test"}
    assert all(found["equal"] for found in metrics["verification"].values())
    assert {c["set"]: c["dense"] for c in metrics["channels"]} == {"stem": 16, "block.0": 32}
    assert sum(c["slim"] for c in metrics["channels"]) < 48
    assert "agreement with the dense model" in str(finished[0])


def test_progress_is_reported(finished):
    log = finished[1]
    assert log.stages == [
        *(
            "reading images",
            "capturing the model",
            "rehearsing",
            "training",
            "removing channels",
            "verifying",
            "measuring",
        )
    ]
    assert log.evaluations == []  # nothing is searched
    assert [step for step, _, _ in log.steps] == list(range(1, log.steps[0][1] + 1))
    assert set(finished[0].metrics["seconds"]) == set(log.stages)


def test_failures_before_the_training_leave_nothing(model, tmp_path):
    out = tmp_path / "out"
    small = digits(number=4)
    cases = {
        BudgetError: ("remain", lambda: gp.compress(model, digits(), macs=0.0005, config=SETTINGS, output=out)),
        UsageError: ("no budget", lambda: gp.compress(model, digits(), config=SETTINGS, output=out)),
        DataError: ("does not take", lambda: gp.compress(nn.Linear(3, 4), digits(), macs=0.5, output=out)),
    }
    large = np.zeros((4, 1, 9, 9), np.float32)
    with pytest.raises(DataError, match=r"to measure on \(the array given\) are 1x9x9, those to learn from 1x8x8"):
        gp.compress(model, digits(), macs=0.5, config=SETTINGS, output=out, eval_images=large)
    for kind, (reason, call) in cases.items():
        with pytest.raises(kind, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert not out.exists()
    with pytest.raises(UsageError, match="at least 10 are needed"):
        gp.compress(model, small, macs=0.5, config=SETTINGS, output=out)
    with pytest.raises(UsageError, match="`params` gives 2 budgets for 3 students"):
        gp.compress(model, small, macs=(0.6, 0.5, 0.4), params=[0.5, 0.4], config=SETTINGS)
    assert not out.exists()


def test_a_forced_run_that_fails_in_its_rehearsal_replaces_nothing(model, tmp_path, monkeypatch):
    from graphprune.delivery import deliver as delivery

    def refuse(*_arguments, **_options):
        raise UnsupportedModelError("no such operator in ONNX")

    monkeypatch.setattr(delivery, "export_onnx", refuse)
    earlier = ("checkpoint.pt", "compress.log", "latency.json", "metrics.json", "settings.json", "slim.onnx")
    for name in earlier:
        (tmp_path / name).write_text("earlier")
    with pytest.raises(UnsupportedModelError, match="no such operator"):
        gp.compress(model, digits(), macs=0.5, config=SETTINGS, output=tmp_path, force=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(earlier, "earlier")


def test_a_result_that_fails_verification_is_not_written(model, tmp_path, monkeypatch):
    from graphprune.delivery import deliver as delivery

    def wrong(student, plan, *arguments, **options):
        cut = gp.slim(student, plan, *arguments, **options)
        with torch.no_grad():
            cut.get_parameter("head.bias").add_(0.1)
        return cut

    monkeypatch.setattr(delivery, "slim", wrong)
    short = dataclasses.replace(SETTINGS, epochs=2, batch_size=32)
    with pytest.raises(VerificationError, match="the slim model does not compute what the masked model does"):
        gp.compress(model, digits(number=180), macs=0.5, config=short, output=tmp_path / "out", benchmark=QUICK)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("checkpoint.pt", "compress.log", "settings.json")
    ]


def test_inexact_groups_go_when_asked_for(caplog):
    """The slim model has other statistics than the masked one: it is what is exported, checked and reported."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patch, self.norm = nn.Conv2d(1, 16, 2, stride=2), nn.LayerNorm(16)
            self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 10)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head((x + self.down(torch.relu(self.up(self.norm(x))))).mean(1))

    settings = dataclasses.replace(SETTINGS, allow_inexact=True)
    result = gp.compress(Mixer().eval(), digits(), macs=0.3, config=settings, benchmark=QUICK)
    gone = {name for name, dims in result.plan.removed.items() if 0 in dims}
    assert {"patch.weight", "norm.weight", "up.weight"} <= gone
    assert " exact (statistics over channels: aten.layer_norm.default" in caplog.text
    assert result.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_several_budgets_make_a_family_in_one_run(model, tmp_path):
    out = tmp_path / "out"
    result = gp.compress(
        model, digits(), macs=[0.7, 0.4], config=SETTINGS, output=out, benchmark=gp.BenchmarkOptions(seconds=0.02)
    )
    names = ["slim-macs0.7", "slim-macs0.4"]
    assert list(result.family) == names
    kept = {"checkpoint.pt", "compress.log", "settings.json", "dense.onnx", "metrics.json"}
    kinds = ("onnx", "pt2", "plan.json")
    assert {file.name for file in out.iterdir()} == kept | {f"{name}.{kind}" for name in names for kind in kinds}
    dense, large, small = result.metrics["models"]
    assert [large["name"], small["name"]] == names
    assert 0.6 < large["macs"] / dense["macs"] <= 0.7
    assert 0.3 < small["macs"] / dense["macs"] <= 0.4
    assert [member["budget"]["macs"] for member in result.metrics["members"]] == [0.7, 0.4]
    assert [student["number"] for student in result.metrics["students"]] == [0, 1]
    assert all(name in str(result) for name in names)
    x = torch.from_numpy(digits().batch(slice(0, 5)))
    for name, slim in result.family.items():
        torch.testing.assert_close(gp.load(out / f"{name}.pt2")(x), slim(x))
    assert gp.PruningPlan.load(out / "slim-macs0.7.plan.json").to_dict() == result.plan.to_dict()
    # A later run of one budget leaves nothing of the family behind.
    gp.compress(model, digits(), macs=0.5, config=SETTINGS, output=out, benchmark=QUICK, force=True)
    assert not list(out.glob("slim-*"))


def test_of_several_students_the_best_on_held_out_images_is_delivered(model, caplog):
    config = dataclasses.replace(SETTINGS, n_students=2)
    with caplog.at_level("INFO", "graphprune"):
        result = gp.compress(model, digits(), macs=0.5, config=config, benchmark=QUICK)
    agreements = [student["held_out_agreement"] for student in result.metrics["students"]]
    assert result.metrics["quality"]["held_out_agreement"] == max(agreements)
    assert list(result.family) == ["slim"]
    assert "the one that agrees best with the dense model" in caplog.text


def test_the_threads_of_the_caller_are_left_as_they_were(model):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = gp.compress(model, digits(), macs=0.5, config=SETTINGS, benchmark=QUICK)
        assert result.metrics["torch_threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_an_observer_adds_to_the_history(model):
    seen = []

    def look(student):
        seen.append(student.training)
        return {"seen": float(len(seen))}

    settings = dataclasses.replace(SETTINGS, eval_every=5)
    result = gp.compress(model, digits(), macs=0.5, config=settings, observer=look, benchmark=QUICK)
    assert [record["seen"] for record in result.metrics["history"]] == list(range(1, len(seen) + 1))
    assert not any(seen)
    assert result.metrics["steps"]["number"] == result.metrics["history"][-1]["step"]


@pytest.mark.slow
def test_numbers_are_told_by_their_distance_and_searched_by_it(model):
    log = Log()
    settings = dataclasses.replace(
        SETTINGS, output_loss="mse", policy="random", search_evaluations=3, search_images=32, sensitivity="l1"
    )
    result = gp.compress(model, digits(), macs=0.5, config=settings, benchmark=QUICK, reporter=log)
    assert "distance from the dense model" in str(result)
    assert "agreement" not in str(result)
    assert result.metrics["quality"]["agreement"] is None
    assert result.metrics["models"][1]["distance"] == result.metrics["quality"]["distance"] > 0
    assert {agreement for _, _, agreement in log.evaluations} == {None}


class Segmenter(nn.Module):
    """A map of class scores at the size of the image."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, x):
        scores = self.head(self.middle(self.down(x)))
        return nn.functional.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("channels", "output_loss"),
    [(1, "auto"), (3, "kl"), *(pytest.param(*some, marks=pytest.mark.slow) for some in ((3, "auto"), (1, "kl")))],
)
def test_a_dense_prediction_from_images_of_all_kinds_at_an_odd_size(tmp_path, channels, output_loss):
    random = np.random.default_rng(0)
    for at, mode in enumerate(["L", "RGB", "RGBA", "LA", "P"] * 5):
        pixels = random.integers(0, 256, (random.integers(9, 40), random.integers(9, 40), 4), np.uint8)
        Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / f"{at}.png")
    result = gp.compress(
        Segmenter(channels).eval(),
        str(tmp_path),
        macs=0.5,
        config=dataclasses.replace(SETTINGS, batch_size=8, epochs=6, crop=True, flip=True, output_loss=output_loss),
        data=gp.DataOptions(image_size=(23, 17), channels=channels),
        benchmark=QUICK,
    )
    assert 0.4 < result.metrics["reached"]["macs"] <= 0.5
    assert result.model(torch.zeros(2, channels, 23, 17)).shape == (2, 3, 23, 17)
    quality = result.metrics["quality"]
    assert quality["distance"] > 0
    if output_loss == "auto":  # a map may be an image: its channels are no classes unless that is said
        assert quality["agreement"] is None
    else:
        assert 0 < quality["agreement"] <= 1


INT8 = gp.QuantizeOptions(min_agreement=0.0)


def test_int8_is_tried_before_the_training(model, tmp_path, monkeypatch):
    from onnxruntime.quantization import QDQQuantizer

    def refuse(self):
        raise IndexError("index 7 is out of bounds")

    monkeypatch.setattr(QDQQuantizer, "quantize_model", refuse)
    log = Log()
    with pytest.raises(UnsupportedModelError, match="cannot quantize the model: index 7 is out of bounds"):
        gp.compress(*(model, digits()), macs=0.5, config=SETTINGS, output=tmp_path / "out", quantize=INT8, reporter=log)
    assert log.stages[-1] == "rehearsing"
    assert not (tmp_path / "out").exists()


def test_int8_that_fails_after_the_training_leaves_all_the_rest(model, tmp_path, monkeypatch):
    from graphprune.delivery import int8_files

    def refuse(source, target, images, *, options):
        target.write_bytes(b"half of it")
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(int8_files, "quantize_onnx", refuse)
    said = "ZeroDivisionError: by zero"
    out = tmp_path / "out"
    with pytest.raises(
        UnfinishedError, match=f"slim.onnx is made and all that .* not slim-int8.onnx: {said}"
    ) as caught:
        gp.compress(model, digits(), macs=0.5, config=SETTINGS, output=out, quantize=INT8, benchmark=QUICK)
    assert caught.value.exit_code == 1
    result = caught.value.result
    assert {"dense.onnx", "slim.onnx", "slim.pt2", "plan.json", "metrics.json"} <= {f.name for f in out.iterdir()}
    assert not (out / "slim-int8.onnx").exists()
    assert result.metrics["int8_missing"] == {"slim": f"slim-int8.onnx: {said}"}
    assert [entry["name"] for entry in result.metrics["models"]] == ["dense", "slim"]
    assert f"NOT MADE: slim-int8.onnx: {said}" in str(result)
    assert result.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


class Dense(nn.Module):
    """As many numbers out as pixels in, at any size; asked for by a flag."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x, mode):
        return self.last(torch.relu(self.first(x))) if mode == "image" else x


def test_a_program_with_a_flag_and_free_sizes_stays_free(tmp_path, caplog):
    call, sizes = (torch.rand(2, 1, 10, 14), "image"), dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(Dense().eval(), call, dynamic_shapes=(sizes, None))
    result = gp.compress(program, digits(), macs=0.5, config=SETTINGS, benchmark=QUICK, output=tmp_path / "out")
    for name in ("dense.onnx", "slim.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / name)
        assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    x = torch.rand(1, 1, 20, 6)
    loaded = gp.load(tmp_path / "out" / "slim.pt2")
    assert torch.allclose(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), loaded(x), atol=1e-5)
    dense, slim = result.metrics["models"]
    assert dense["macs"] == 2 * 9 * 16 * 64  # of the images, whatever the program was exported on
    assert slim["macs"] <= dense["macs"] / 2
    assert "multiply-accumulates" not in caplog.text

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

import graphprune as gp
from graphprune import demo
from graphprune.cli import main
from graphprune.errors import UnsupportedModelError

ARCH = "graphprune.demo:DigitNet(width=8)"
RESULTS = {"dense.onnx", "slim.onnx", "slim.pt2", "plan.json", "metrics.json"}
KEPT = {"checkpoint.pt", "compress.log", "settings.json"}
QUICK = ["--no-flip", "--precision", "float32", "--threads", "1", "--batch-size", "16", "--benchmark-seconds", "0"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Images to learn from without labels, one of them broken; images to judge by; and a network's weights."""
    folder = tmp_path_factory.mktemp("work")
    digits = demo.load_digits()
    few = demo.Digits(digits.train[:200], digits.train_labels[:200], digits.val[:40], digits.val_labels[:40])
    demo.write_folders(few, folder)
    (folder / "train" / "broken.png").write_bytes(b"\x89PNG and no more")
    torch.manual_seed(0)
    model = demo.DigitNet(8)
    model(torch.randn(64, 1, 16, 16))
    save_file(model.state_dict(), folder / "net.safetensors")
    return folder


def command(work, out, *options, epochs="6"):
    return [
        *("compress", str(work / "net.safetensors"), "--arch", ARCH, "--data", str(work / "train")),
        *("--macs", "0.5", "--epochs", epochs, "-o", str(out), *QUICK, *options),
    ]


def run(arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(work):
    """A run from start to end: its folder, and what it said."""
    out = work / "out"
    code, stdout, stderr = run(command(work, out, "--eval-data", str(work / "val"), "--seed", "3"))
    assert code == 0, stderr
    return out, stdout, stderr


def names(folder):
    return {file.name for file in folder.iterdir()}


def read_images(work):
    digits = sorted((work / "val").rglob("*.png"))
    from PIL import Image

    return np.stack([(np.asarray(Image.open(path), np.float32)[None] / 255 - 0.5) / 0.5 for path in digits])


def test_the_folder_holds_every_result(finished):
    out, _, _ = finished
    assert names(out) == RESULTS | KEPT
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0.4 < metrics["reached"]["macs"] <= 0.5
    assert metrics["config"]["seed"] == 3
    assert metrics["data"]["skipped"] == ["broken.png"]
    assert metrics["data"]["number"] == 200
    assert set(metrics["quality"]["accuracy"]) == {"dense", "slim"}
    assert metrics["record"]["arch"] == ARCH
    assert not list(out.glob(".*"))


def test_the_slim_file_computes_what_the_slim_model_does(finished, work):
    out, _, _ = finished
    images = read_images(work)
    expected = gp.load(out / "slim.pt2")(torch.from_numpy(images)).detach().numpy()
    session = ort.InferenceSession(out / "slim.onnx")
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_plan_cuts_the_dense_file_to_the_same_size(finished, tmp_path):
    out, _, _ = finished
    report = gp.slim_onnx(out / "dense.onnx", tmp_path / "cut.onnx", out / "plan.json")
    slim = json.loads((out / "metrics.json").read_text())["models"][1]
    assert (report.macs_after, report.params_after) == (slim["macs"], slim["stored_weights"])


def test_stdout_is_the_table_and_the_paths_and_stderr_the_rest(finished):
    out, stdout, stderr = finished
    lines = stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        *("", "MACs", "parameters", "file size", "agreement with the dense model", "accuracy")
    ]
    for name in RESULTS:
        assert any(line.startswith(str(out / name)) for line in lines)
    assert "skipped unreadable image broken.png" in stderr
    assert "training ..." in stderr
    assert "gray 16x16" in (out / "compress.log").read_text()


def test_an_int8_version_is_a_further_row(work, tmp_path):
    out = tmp_path / "out"
    options = ["--quantize", "int8", "--min-agreement", "0", "--eval-data", str(work / "val")]
    code, stdout, stderr = run([*command(work, out, *options, epochs="1"), "--benchmark-seconds", "0.01"])
    assert code == 0, stderr
    assert names(out) == RESULTS | KEPT | {"slim-int8.onnx"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert [model["name"] for model in metrics["models"]] == ["dense", "slim", "slim-int8"]
    slim, int8 = metrics["models"][1:]
    assert (int8["macs"], int8["params"]) == (slim["macs"], slim["params"])
    assert int8["size_bytes"] == (out / "slim-int8.onnx").stat().st_size
    assert int8["latency_ms"]["median"] > 0
    assert 0 <= int8["accuracy"] <= 1
    (fact,) = metrics["int8"]
    assert (fact["name"], fact["of"], fact["reached"]) == ("slim-int8", "slim", True)
    assert fact["verdict"] in {"faster", "not faster on this machine"}
    assert fact["scheme_text"] in stdout
    assert any(line.startswith(str(out / "slim-int8.onnx")) for line in stdout.splitlines())


@pytest.mark.slow
def test_an_int8_version_that_is_missing_says_how_it_is_made(work, tmp_path, monkeypatch):
    from graphprune.delivery import int8_files

    def refuse(*arguments, **options):
        raise UnsupportedModelError("no ranges for it")

    real = int8_files.quantize_onnx
    monkeypatch.setattr(int8_files, "quantize_onnx", refuse)
    out = tmp_path / "my out"
    code, stdout, stderr = run(command(work, out, "--quantize", "int8", "--min-agreement", "0.25", epochs="1"))
    assert code == UnsupportedModelError.exit_code
    assert names(out) == RESULTS | KEPT
    assert all(str(out / name) in stdout for name in RESULTS)
    assert "slim-int8.onnx:" in stdout
    last = stderr.splitlines()[-1]
    assert last.startswith(
        "error: slim.onnx is made and all that goes with it, but not slim-int8.onnx: no ranges for it;"
    )
    monkeypatch.setattr(int8_files, "quantize_onnx", real)
    words = shlex.split(last[last.index("graphprune quantize") :])
    code, stdout, stderr = run([*words[1:], "--benchmark-seconds", "0"])
    assert code == 0, stderr
    assert (out / "slim-int8.onnx").exists()


def test_an_existing_folder_is_left_alone(finished, work):
    out, _, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, stdout, stderr = run(command(work, out))
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert "--resume" in stderr
    assert "--force" in stderr
    # A forced run that fails before its training replaces nothing either.
    code, stdout, stderr = run([*command(work, out, "--force", "-q"), "--macs", "0.0001"])
    assert (code, stdout) == (5, "")
    assert "cannot be reached" in stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--lr", "0.001"], f"--lr was {gp.CompressConfig().peak_lr:g} and is now 0.001"),
        (["--macs", "0.6"], "--macs was 0.5 and is now 0.6"),
        (["--mean", "0.3"], "preprocessing"),
        (["--output-loss", "mse"], "--output-loss was auto and is now mse"),
        (["--limit", "100"], "images"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(finished, work, options, reason):
    out, _, _ = finished
    code, stdout, stderr = run(command(work, out, "--seed", "3", "--resume", "-q", *options))
    assert code in (1, 2)
    assert stdout == ""
    assert reason in stderr.splitlines()[-1]
    assert names(out) == RESULTS | KEPT


def test_bad_input_is_one_line_and_writes_nothing(work, tmp_path):
    torch.save(demo.DigitNet(8), tmp_path / "pickled.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for at in range(4):
        (tmp_path / "bad" / f"{at}.png").write_bytes((work / "train" / f"000{at}.png").read_bytes())
    (tmp_path / "bad" / "4.png").write_bytes(b"no image")
    before = names(tmp_path)
    good = str(work / "net.safetensors")
    data = ["--data", str(work / "train")]
    arch = ["--arch", ARCH]
    cases = [
        ([str(tmp_path / "none.pt2"), *data], 1, "no such file"),
        ([str(tmp_path / "text.pt"), *data, *arch], 1, "not written by torch.save"),
        ([str(tmp_path / "pickled.pt"), *data], 1, "--trust-pickle"),
        ([good, *data], 1, "--arch"),
        ([good, *data, "--arch", "graphprune.models:resnet20"], 1, "does not fit"),
        ([good, *data, "--arch", "graphprune.models:resnet21"], 1, "no factory resnet21"),
        ([good, *data, "--arch", "graphprune.models"], 2, "wrong form"),
        ([good, *arch, "--data", str(tmp_path / "empty")], 1, "no image"),
        ([good, *arch, "--data", str(tmp_path / "none")], 1, "no such folder"),
        ([good, *arch, "--data", str(tmp_path / "bad")], 1, "4.png"),
        ([good, *arch, *data, "--eval-data", str(tmp_path / "empty")], 1, "no image"),
        ([good, *arch, *data, "--macs", "0"], 2, "--macs must be between 0 and 1"),
        ([good, *arch, *data, "--macs", "2"], 2, "--macs must be between 0 and 1"),
        ([good, *arch, *data, "--macs", "half"], 2, "'half' is no share like 0.5, and no list like 0.66,0.5,0.33"),
        ([good, *arch, *data, "--speedup", "2x"], 2, "'2x' is no number of times like 2, and no list like 1.5,2,3"),
        ([good, *arch, *data, "--latency-ms", "5ms"], 2, "'5ms' is no number of milliseconds like 5, and no list"),
        ([good, *arch, *data, "--macs", "0.5", "--provider", "MadeUp"], 2, "MadeUp is not in this onnxruntime"),
        ([good, *arch, *data, "--macs", "0.0001"], 5, "cannot be reached"),
        ([good, *arch, *data, "--channels", "3"], 1, "does not take images of 3x16x16"),
        ([good, *arch, *data, "--epochs", "0.1"], 2, "at least 10 are needed"),
        ([good, *arch, *data, "--resume"], 1, "no checkpoint"),
        ([good, *arch, *data, "--min-agreement", "0.9"], 2, "give --quantize int8 as well"),
        ([good, *arch, *data, "--search-images", "32"], 2, "is for policies that try allocations out"),
        ([good, *arch, "--macs", "0.5"], 2, "--data"),
    ]
    for arguments, code, reason in cases:
        budget = [] if "--macs" in arguments else ["--macs", "0.5"]
        found = run(["compress", *arguments, *budget, "-o", str(tmp_path / "out"), *QUICK, "-q"])
        assert found[:2] == (code, ""), arguments
        assert reason in found[2].splitlines()[-1], arguments
        # An image that was skipped is named before the error.
        assert [line for line in found[2].splitlines()[:-1] if not line.startswith("warning: ")] == [], arguments
        assert found[2].splitlines()[-1].startswith("error: "), arguments
        assert names(tmp_path) == before, arguments


def test_a_budget_is_needed(work, tmp_path):
    arguments = command(work, tmp_path / "out")
    at = arguments.index("--macs")
    code, _, stderr = run([*arguments[:at], *arguments[at + 2 :], "-q"])
    assert (code, stderr.count("\n")) == (2, 1)
    assert "no budget given" in stderr


@pytest.mark.slow
def test_a_family_is_made_by_one_command(work, tmp_path):
    arguments = [*command(work, tmp_path / "out", "--freeze", "conv1", "--course", "static"), "--macs", "0.7,0.5"]
    code, stdout, stderr = run(arguments)
    assert code == 0, stderr
    assert "slim-macs0.7" in stdout.splitlines()[0]
    for name in ("slim-macs0.7.onnx", "slim-macs0.5.onnx", "slim-macs0.5.pt2", "dense.onnx", "metrics.json"):
        assert any(line.startswith(str(tmp_path / "out" / name)) for line in stdout.splitlines()), name
    config = json.loads((tmp_path / "out" / "metrics.json").read_text())["config"]
    assert (config["n_students"], config["freeze"], config["course"]) == (2, ["conv1"], "static")


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-c", "from graphprune.cli import main; raise SystemExit(main())", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_plan(finished, work, tmp_path):
    out = tmp_path / "out"
    arguments = command(work, out, "--seed", "3", "--checkpoint-steps", "1")
    process = start(arguments, tmp_path)
    log = out / "compress.log"
    deadline = time.monotonic() + 120
    # Far enough that the expected-sparse set is not empty, early enough that it is not final.
    while not (log.exists() and log.read_text().count("sparsify") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not names(out) & RESULTS
    killed_at = torch.load(out / "checkpoint.pt", weights_only=True)["step"]

    code, stdout, stderr = run([*arguments, "--resume", "--json"])
    assert code == 0, stderr
    metrics = json.loads(stdout)  # nothing but JSON
    steps = [entry["step"] for entry in metrics["history"]]
    assert 0 < killed_at < steps[-1]
    assert names(out) == RESULTS | KEPT
    whole = finished[0]
    assert (out / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    resumed, uninterrupted = (gp.load(folder / "slim.pt2").state_dict() for folder in (out, whole))
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(resumed[name], tensor)


@pytest.mark.parametrize("option", ["--search-evaluations", "--search-images"])
def test_how_to_search_is_refused_where_nothing_is(work, tmp_path, option):
    code, _, stderr = run(command(work, tmp_path / "out", option, "8", "--policy", "knapsack"))
    assert code == 2
    assert f"{option} is for policies that try allocations out: give --policy ddpg, bee-colony, random" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_says_how_far_it_is_and_leaves_its_course(work, tmp_path):
    out = tmp_path / "out"
    options = ["--recipe", "combined", "--policy", "random", "--search-evaluations", "4", "--search-images", "32"]
    code, stdout, stderr = run(command(work, out, *options, "--sigma", "1", epochs="1"))
    assert code == 0, stderr
    assert "random: the best of 4 allocations agrees on" in stderr
    assert str(out / "search.svg") in stdout
    assert {path.name for path in out.iterdir()} == {*RESULTS, *KEPT, "search.json", "search.svg"}
    settings = json.loads((out / "metrics.json").read_text())["config"]
    assert (settings["recipe"], settings["policy"], settings["sigma"]) == ("combined", "random", 1)

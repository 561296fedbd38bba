import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune import slimming
from graphprune.cli import main
from graphprune.errors import BudgetError
from graphprune.latency.target import LatencyTarget
from graphprune.runtime import onnx_session

INPUTS = (torch.zeros(2, 3, 8, 8),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """net.onnx; zeros.onnx, of which half of the inner channels are zero; and the plan that says which."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    plan = gp.plan(gp.trace(model, INPUTS), ratio=0.5)
    plan.save(folder / "plan.json")
    gp.export_onnx(model, INPUTS, folder / "net.onnx")
    gp.export_onnx(gp.mask(model, plan), INPUTS, folder / "zeros.onnx")
    return folder


def channels(path):
    return sorted(tensor.dims[0] for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)


@pytest.mark.parametrize("arguments", [["zeros.onnx"], ["net.onnx", "--plan", "plan.json"]])
def test_dead_or_planned_channels_go(files, tmp_path, capsys, arguments):
    source, *options = [str(files / a) if "." in a else a for a in arguments]
    target = tmp_path / "slim.onnx"
    assert main(["slim", source, str(target), *options]) == 0
    out, err = capsys.readouterr()
    assert channels(target) == [4, 4]
    assert "output channels of layers removed: 4, in groups: 4" in out
    assert "-50.0 %" in out
    assert out.rstrip().endswith(str(target))
    assert "error" not in err


def test_nothing_to_do_is_said(files, tmp_path, capsys):
    assert main(["slim", str(files / "net.onnx"), str(tmp_path / "slim.onnx")]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert channels(tmp_path / "slim.onnx") == [4, 8]


def test_json(files, tmp_path, capsys):
    assert main(["slim", str(files / "zeros.onnx"), str(tmp_path / "slim.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["removed_channels"] == 4
    assert found["macs_after"] < found["macs_before"]


@pytest.mark.parametrize(
    ("array", "code", "message"),
    [
        (np.zeros((4, 3, 9, 8), "f4"), 2, "x3x8x8"),
        (np.zeros((3, 8, 8), "f4"), 2, "the shape given is 3x8x8"),
        (np.zeros((0, 3, 8, 8), "f4"), 1, "is empty, of shape (0, 3, 8, 8)"),
        (np.full((1, 3, 8, 8), np.nan, "f4"), 1, "holds NaN"),
        (np.full((1, 3, 8, 8), "x"), 1, "is not of numbers"),
    ],
)
def test_arrays_that_the_model_does_not_take_are_refused(files, tmp_path, capsys, array, code, message):
    np.save(tmp_path / "in.npy", array)
    target = tmp_path / "slim.onnx"
    assert main(["slim", str(files / "zeros.onnx"), str(target), "--inputs", str(tmp_path / "in.npy")]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not target.exists()


def test_bad_input_is_one_line_and_writes_nothing(files, tmp_path, capsys):
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    (tmp_path / "bad.json").write_text("{}")
    net = str(files / "net.onnx")
    cases = [
        ([str(files / "missing.onnx"), "new.onnx"], "no such file"),
        ([net, str(there)], "--force"),
        ([net, "new.onnx", "--plan", str(tmp_path / "bad.json")], "no pruning plan"),
        ([net, "new.onnx", "--plan", str(tmp_path / "none.json")], "cannot read plan"),
        ([str(files / "plan.json"), "new.onnx"], "not an .onnx file"),
        ([str(there), "new.onnx"], "not"),
        ([net, str(files)], "a folder, and not an .onnx file"),
    ]
    for arguments, reason in cases:
        paths = [str(tmp_path / a) if a == "new.onnx" else a for a in arguments]
        assert main(["slim", *paths]) == 1, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert reason in err
        assert err.count("\n") == 1
    assert there.read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.json", "there.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--align", "8"], "--align says how channels are chosen: give one of --ratio, --macs"),
        (["--importance", "l1"], "--importance says how channels are chosen"),
        (["--importance", "l2", "--plan", "plan.json"], "--importance says how channels are chosen"),
        (["--allow-inexact"], "--allow-inexact says how channels are chosen"),
        (["--provider", "MadeUp"], "MadeUp is not in this onnxruntime"),
        (["--ratio", "0.5", "--benchmark-threads", "1"], "say how a latency is measured, and none is"),
        (["--macs", "0.5", "--align", "2", "--benchmark-batch", "4"], "say how a latency is measured"),
        (["--speedup", "2", "--shape", "4x3x8x8", "--benchmark-batch", "2"], "is for a batch of 4, 2 was asked for"),
        (["--macs", "0.5", "--align", "auto", "--shape", "4x3x8x8", "--benchmark-batch", "2"], "is for a batch of 4"),
    ],
)
def test_options_without_use_are_refused(files, tmp_path, capsys, options, message):
    options = [str(files / option) if option.endswith(".json") else option for option in options]
    assert main(["slim", str(files / "net.onnx"), str(tmp_path / "slim.onnx"), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def asked(monkeypatch):
    """The latencies that were asked for; nothing is measured."""
    targets = []

    def stop(*arguments, latency_target, **rest):
        targets.append(latency_target)
        raise BudgetError("enough")

    monkeypatch.setattr(slimming, "slim_onnx", stop)
    return targets


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ([], 1),
        (["--shape", "4x3x8x8"], 4),
        (["--shape", "?x3x8x8"], 1),
        (["--shape", "?x3x8x8", "--benchmark-batch", "3"], 3),
    ],
)
def test_latency_is_that_of_the_provider_and_batch_asked_for(files, tmp_path, monkeypatch, asked, options, batch):
    monkeypatch.setattr(onnx_session.ort, "get_available_providers", lambda: ["Other", onnx_session.CPU])
    arguments = ["--speedup", "2", "--benchmark-threads", "2", "--provider", "Other", *options]
    assert main(["slim", str(files / "net.onnx"), str(tmp_path / "slim.onnx"), *arguments]) == 5
    assert asked == [LatencyTarget(threads=2, batch=batch, provider="Other")]


def test_latency_is_that_of_a_fixed_batch(files, tmp_path, asked):
    model = onnx.load(files / "net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    assert main(["slim", str(tmp_path / "fixed.onnx"), str(tmp_path / "slim.onnx"), "--speedup", "2"]) == 5
    assert asked == [LatencyTarget(batch=4)]


def test_a_shape_that_leaves_the_batch_open_is_checked_at_several(files, tmp_path):
    options = ["--ratio", "0.5", "--align", "2", "--shape", "?x3x8x8"]
    assert main(["slim", str(files / "net.onnx"), str(tmp_path / "slim.onnx"), *options]) == 0
    assert channels(tmp_path / "slim.onnx") == [4, 4]


def test_weights_that_may_be_replaced_are_said_to_be_the_reason(files, tmp_path, capsys):
    model = onnx.load(files / "zeros.onnx")
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "listed.onnx")
    assert main(["slim", str(tmp_path / "listed.onnx"), str(tmp_path / "slim.onnx")]) == 0
    assert "4 weights are inputs of the graph as well" in capsys.readouterr().out


def test_what_the_macs_leave_out_is_said(files, tmp_path, capsys):
    model = onnx.load(files / "zeros.onnx")
    output = model.graph.output[0]
    relu = onnx.helper.make_node("Relu", [output.name], ["z"])
    body = onnx.helper.make_graph([relu], "b", [], [onnx.helper.make_tensor_value_info("z", 1, ["n", 4, 4, 4])])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.bool_(True), "always"))
    model.graph.node.append(onnx.helper.make_node("If", ["always"], ["y"], then_branch=body, else_branch=body))
    output.name = "y"
    onnx.save(model, tmp_path / "if.onnx")
    assert main(["slim", str(tmp_path / "if.onnx"), str(tmp_path / "slim.onnx")]) == 0
    assert "not in the MACs: If 'y': no formula for this operator" in capsys.readouterr().out
    assert main(["slim", str(tmp_path / "if.onnx"), str(tmp_path / "other.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncounted"] == ["If 'y': no formula for this operator"]


@pytest.mark.parametrize("goal", [("--macs", "0.5"), ("--params", "0.5"), ("--speedup", "2")])
def test_a_network_of_which_nothing_can_go_is_refused_in_one_line(tmp_path, capsys, goal):
    b = nn.ReLU().eval()
    gp.export_onnx(b, INPUTS, tmp_path / "relu.onnx")
    assert main(["slim", str(tmp_path / "relu.onnx"), str(tmp_path / "slim.onnx"), *goal]) == 5
    assert "no channel of this network can be removed" in capsys.readouterr().err.splitlines()[-1]

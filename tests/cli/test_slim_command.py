import json

import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cli import main

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
    assert "4 channels of layers removed" in out
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

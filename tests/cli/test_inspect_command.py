import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import graphprune as gp
from graphprune.cli import main
from graphprune.demo import DigitNet

ARCH = ["--arch", "graphprune.demo:DigitNet(width=8)"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = DigitNet(8).eval()
    inputs = (torch.zeros(2, 1, 16, 16),)
    torch.save(model.state_dict(), folder / "net.pt")
    gp.save(model, folder / "net.pt2", inputs)
    gp.export_onnx(model, inputs, folder / "net.onnx")
    return folder


def test_a_table_a_row_a_set(files, capsys):
    assert main(["inspect", str(files / "net.pt"), *ARCH, "--image-size", "16"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["coupled channels", "number", "MACs", "parameters", "removable", "outputs of"]
    trunk = next(row for row in rows if row[0] == "conv1")
    assert (trunk[1], trunk[4], trunk[5]) == ("8", "yes", "conv1, layer1.*.conv2 (3 layers)")
    assert any("linear.weight, linear.bias" in row[-1] for row in rows)
    assert "with everything removed that may go" in out.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["net.pt2"], ["net.pt2", "--image-size", "16"], ["net.pt", *ARCH, "--shape", "1x1x16x16"]),
        *(["net.onnx"], ["net.onnx", "--shape", "4x1x16x16"]),
    ],
)
def test_every_form_of_a_model_tells_the_same(files, capsys, arguments):
    assert main(["inspect", str(files / arguments[0]), *arguments[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert sorted(entry["channels"] for entry in found["sets"]) == [8, 8, 8, 16, 16, 16]
    stage1 = 8 * 9 * 256 + 4 * 8 * 8 * 9 * 256
    stage2 = 8 * 16 * 9 * 64 + 8 * 16 * 64 + 3 * 16 * 16 * 9 * 64
    assert found["macs"] == stage1 + stage2 + 16 * 10
    assert found["unknown_operators"] == {}


def test_free_sizes_of_a_file_are_those_asked_for(tmp_path, capsys):
    path = tmp_path / "free.onnx"
    weights = [np.ones((6, 3, 3, 3), np.float32), np.ones((2, 6, 1, 1), np.float32)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "a"], ["y"], pads=[1] * 4), helper.make_node("Conv", ["y", "b"], ["z"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "height", "width"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2, "height", "width"])],
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, "ab", strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    for arguments, pixels in ((["--image-size", "10x12"], 120), (["--shape", "1x3x5x5"], 25)):
        assert main(["inspect", str(path), "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["macs"] == pixels * (6 * 27 + 2 * 6)


def test_bad_input_is_one_line(files, tmp_path, capsys):
    cases = [
        (["net.pt", *ARCH], 2, "--image-size"),
        (["net.pt", *ARCH, "--image-size", "0"], 2, "neither a side"),
        (["net.pt"], 1, "--arch"),
        (["missing.pt2"], 1, "no such file"),
        (["missing.onnx"], 1, "no such file"),
        (["net.pt", *ARCH, "--shape", "1x3x16x16"], 3, "cannot capture"),
        (["net.pt2", "--image-size", "32"], 2, "was exported for other inputs: input 0 is ?x1x16x16"),
        (["net.pt2", "--shape", "1x3x16x16"], 2, "was exported for other inputs: input 0 is ?x1x16x16"),
        (["net.onnx", "--image-size", "32"], 2, "x1x16x16, the shape given is ?x1x32x32"),
        (["net.onnx", "--shape", "pixels:1x1x16x16"], 2, "no input is called 'pixels'"),
        (["net.onnx", *ARCH], 2, "leave --arch"),
        (["net.pt", *ARCH, "--shape", "pixels:1x1x16x16"], 2, "no input is called 'pixels': the model takes x"),
        (["net.pt2", "--shape", "pixels:1x1x16x16"], 2, "no input is called 'pixels': the model takes x"),
        (["net.onnx", "--shape", "1x1x16x16", "--shape", "2x1x16x16"], 2, "several shapes need the names"),
        (["net.onnx", "--shape", "x:1x1x16x16", "--shape", "x:2x1x16x16"], 2, "two shapes are given for the input 'x'"),
    ]
    for (name, *arguments), code, reason in cases:
        assert main(["inspect", str(files / name), *arguments]) == code, name
        out, err = capsys.readouterr()
        assert out == ""
        assert reason in err
        assert err.count("\n") == 1


def test_nothing_to_remove_is_said(tmp_path, capsys):
    path = tmp_path / "bare.onnx"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy"]
    onnx.save(
        helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", *[[v] for v in value])), path
    )
    assert main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "nothing can be removed" in out
    assert "0 groups of coupled channels in 0 sets" in out


def test_a_shape_that_leaves_the_batch_open_will_do(files, capsys):
    assert main(["inspect", str(files / "net.pt"), *ARCH, "--shape", "?x1x16x16"]) == 0
    out, err = capsys.readouterr()
    assert (err, "conv1" in out) == ("", True)


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x, mode="logits", with_features=False):
        return self.out(self.conv(x).relu()) if mode == "logits" else x


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """An archive with flags, and with height and width left open."""
    path = tmp_path_factory.mktemp("free") / "net.pt2"
    call = (torch.rand(2, 3, 8, 10), "logits", False)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(Flagged().eval(), call, dynamic_shapes=(sizes, None, None)), path)
    return path


@pytest.mark.parametrize(("asked", "pixels"), [([], 80), (["--image-size", "16"], 256), (["--shape", "1x3x8x20"], 160)])
def test_an_archive_with_flags_is_counted_at_the_sizes_asked_for(free, capsys, asked, pixels):
    assert main(["inspect", str(free), *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["macs"] == pixels * (27 * 8 + 32)


@pytest.mark.parametrize(
    ("model", "asked", "said"),
    [
        ("free", "3x8x10", "input 0 is ?x3x?x?, 3x8x10 was given; the batch comes first, as in 1x3x8x10"),
        ("free", "1x1x8x10", "input 0 is ?x3x?x?, 1x1x8x10 was given"),
        ("net.pt2", "1x1x8x8", "input 0 is ?x1x16x16, 1x1x8x8 was given"),
        ("net.pt", "1x16x16", "the shape 1x16x16 has no batch: it comes first, as in 1x1x16x16"),
        ("net.onnx", "1x16x16", "the shape given is 1x16x16; the batch comes first, as in 1x1x16x16"),
    ],
)
def test_a_shape_that_does_not_fit_is_one_line(files, free, capsys, model, asked, said):
    path = free if model == "free" else files / model
    arch = ARCH if model == "net.pt" else []
    assert main(["inspect", str(path), *arch, "--shape", asked]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_weights_of_a_checkpoint_are_chosen_by_an_entry(files, tmp_path, capsys):
    state = torch.load(files / "net.pt")
    torch.save({"model": state, "best": {name: 2 * value for name, value in state.items()}}, tmp_path / "two.ckpt")
    command = ["inspect", str(tmp_path / "two.ckpt"), *ARCH, "--image-size", "16"]
    assert main(command) == 1
    assert "choose with --entry model" in capsys.readouterr().err
    assert main([*command, "--entry", "best"]) == 0
    assert "took" not in capsys.readouterr().err
    assert main(["inspect", str(files / "net.onnx"), "--entry", "best"]) == 2
    assert "leave --entry out" in capsys.readouterr().err

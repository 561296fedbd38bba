import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from graphprune.cli import main


def weight(scale=1.0):
    return (scale * np.random.default_rng(0).standard_normal((5, 3, 3, 3))).astype(np.float32)


def write(path, scale=1.0, size=8):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight(scale), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


class Net(nn.Module):
    """What `write` writes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.conv.weight = nn.Parameter(torch.from_numpy(weight()))

    def forward(self, image):
        return torch.relu(self.conv(image)).mean((2, 3))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(6):
        pixels = np.random.default_rng(at).integers(0, 256, (10, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    return str(folder)


def test_files_in_float16_are_held_to_what_float16_can_say(tmp_path, capsys):
    for name, scale in (("a.onnx", 1.0), ("b.onnx", 1.001), ("c.onnx", 1.05)):
        write(tmp_path / name, scale)
        model = onnx.load(tmp_path / name)
        for tensor in model.graph.initializer:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        onnx.save(model, tmp_path / name)
    a, b, c = (str(tmp_path / name) for name in ("a.onnx", "b.onnx", "c.onnx"))
    assert main(["verify", a, b]) == 0
    assert "1.0e-02" in capsys.readouterr().out
    assert main(["verify", a, c]) == 4
    assert main(["verify", a, b, "--rtol", "1e-4"]) == 4


def test_equal_models_give_0_and_a_table(tmp_path, capsys):
    assert main(["verify", write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]) == 0
    captured = capsys.readouterr()
    assert "scores" in captured.out
    assert "| equal" in captured.out
    assert "16 samples" in captured.out
    assert "100.00 %" in captured.out
    assert captured.err == ""


def test_different_models_give_4_the_table_and_the_place(tmp_path, capsys):
    assert main(["verify", write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 1.1)]) == 4
    captured = capsys.readouterr()
    assert "DIFFERENT" in captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {tmp_path}/b.onnx does not compute what {tmp_path}/a.onnx does")
    assert "first difference inside: 'conv'" in captured.err


def test_the_tolerance_can_be_chosen(tmp_path, capsys):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 1.001)]
    assert main(["verify", *files]) == 4
    assert main(["verify", *files, "--rtol", "0.01"]) == 0
    assert "1.0e-02" in capsys.readouterr().out


def test_json_is_a_versioned_document_even_when_they_differ(tmp_path, capsys):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", 1.1)]
    assert main(["verify", *files, "--json", "--unoptimized"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["schema"], result["equal"], result["samples"]) == (1, False, 16)
    assert result["outputs"][0]["name"] == "scores"
    assert result["outputs"][0]["error"] == pytest.approx(0.1, rel=1e-3)


def test_images_are_brought_to_the_size_of_the_model(tmp_path, capsys, images):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]
    assert main(["verify", *files, "--data", images, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == 6
    assert "8x8" in captured.err
    assert (
        main(["-q", "verify", *files, "--data", images, "--json", "--limit", "2", "--mean", "0.5", "--std", "1"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_torch_models_can_be_either_side(tmp_path, capsys, images):
    onnx_file, program = write(tmp_path / "a.onnx"), str(tmp_path / "m.pt2")
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(Net(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic), program)
    assert main(["verify", program, onnx_file]) == 0
    assert main(["verify", onnx_file, program, "--data", images]) == 0
    assert main(["verify", program, program]) == 0
    assert main(["verify", program, write(tmp_path / "b.onnx", 1.1)]) == 4
    assert f"does not compute what {program} does" in capsys.readouterr().err


def test_a_state_dict_needs_its_architecture(tmp_path, capsys):
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(4, 2).state_dict(), path)
    assert main(["verify", str(path), str(path)]) == 1
    assert main(["verify", str(path), str(path), "--arch", "torch.nn:Linear(in_features=4, out_features=2)"]) == 2
    assert "--shape" in capsys.readouterr().err
    arch = ["--arch", "torch.nn:Linear(in_features=4, out_features=2)", "--shape", "16x4"]
    assert main(["verify", str(path), str(path), *arch]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{good}", "{dir}/none.onnx"], 1, "none.onnx: no such file"),
        (["{dir}/text.onnx", "{good}"], 1, "text.onnx: onnxruntime cannot load it"),
        (["{good}", "{dir}/none.pt2"], 1, "none.pt2"),
        (["{good}", "{dir}/text.pt"], 1, "text.pt"),
        (["{good}", "{good}", "--data", "{dir}/nowhere"], 1, "nowhere"),
        (["{good}", "{large}"], 1, "input 'image' is nx3x16x16, the data is 16x3x8x8"),
        (["{good}"], 2, "Missing argument 'B'"),
        (["{good}", "{good}", "--rtol", "-1"], 2, "--rtol"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arguments, code, message):
    for name in ("text.onnx", "text.pt"):
        (tmp_path / name).write_text("no model at all\n")
    places = {
        "dir": tmp_path,
        "good": write(tmp_path / "good.onnx"),
        "large": write(tmp_path / "large.onnx", size=16),
    }
    assert main(["verify", *(argument.format(**places) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_arrays_are_compared_on_and_not_beside_images(tmp_path, capsys, images):
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, image=np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32))
    assert main(["verify", *files, "--inputs", str(arrays), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 5
    assert main(["verify", *files, "--inputs", str(arrays), "--data", images]) == 2
    assert "and not both" in capsys.readouterr().err
    np.savez(arrays, picture=np.zeros((5, 3, 8, 8), np.float32))
    assert main(["verify", *files, "--inputs", str(arrays)]) == 1
    assert "no array is given for the input 'image'" in capsys.readouterr().err


def test_nothing_to_compare_is_exit_code_4(tmp_path, capsys):
    model = onnx.load(write(tmp_path / "a.onnx"))
    limit = numpy_helper.from_array(np.array([1e9], np.float32), "limit")
    model.graph.initializer.append(limit)
    nodes = [
        helper.make_node("Greater", ["scores", "limit"], ["above"]),
        helper.make_node("Compress", ["scores", "mask"], ["found"]),
        helper.make_node("Reshape", ["above", "flat"], ["mask"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.extend([nodes[0], nodes[2], nodes[1]])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("found", TensorProto.FLOAT, ["k"]))
    onnx.save(model, tmp_path / "silent.onnx")
    silent = str(tmp_path / "silent.onnx")
    other = onnx.load(silent)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * weight(), "w"))
    onnx.save(other, tmp_path / "other.onnx")
    assert main(["verify", silent, silent]) == 0
    assert "not compared" in capsys.readouterr().out
    assert main(["verify", silent, str(tmp_path / "other.onnx")]) == 4
    assert "scores (enters Greater)" in capsys.readouterr().err

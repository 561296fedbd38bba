import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image
from torch import nn

import graphprune as gp
from graphprune.cli import main


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A network as an ONNX file, and images."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "images").mkdir()
    for at in range(24):
        pixels = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{at:02}.png")
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    gp.export_onnx(nn.Sequential(layers, nn.Linear(256, 4)), (torch.randn(2, 3, 8, 8),), folder / "net.onnx")
    return folder


ANY = ("--min-agreement", "0")
QUICK = ("--calibration-images", "8", "--search-images", "8", "--benchmark-seconds", "0.01")


def test_a_table_with_size_speed_and_agreement(work, tmp_path):
    target = tmp_path / "int8.onnx"
    code, out, err = run(
        "quantize", work / "net.onnx", target, "--data", work / "images", *QUICK, "--min-agreement", "0"
    )
    assert code == 0, err
    assert "file size" in out
    assert "agreement with float32" in out
    assert "speed-up" in out
    assert "all layers in int8" in out
    assert str(target) in out
    onnx.checker.check_model(onnx.load(target))
    code, _, err = run("quantize", work / "net.onnx", target, "--data", work / "images", *QUICK)
    assert code == 1
    assert "--force" in err


def test_json(work, tmp_path):
    target = tmp_path / "int8.onnx"
    options = (*QUICK, *ANY, "--no-reduce-range", "--json", "--calibration", "percentile")
    code, out, err = run("quantize", work / "net.onnx", target, "--data", work / "images", *options)
    assert code == 0, err
    found = json.loads(out)
    assert [model["name"] for model in found["models"]] == ["float32", "int8"]
    assert found["models"][0]["macs"] == found["models"][1]["macs"]
    assert found["int8"][0]["scheme"] == {
        "activations": found["int8"][0]["scheme"]["activations"],
        "reduce_range": False,
        "calibration": "percentile",
    }
    assert found["benchmark"]["machine"]["onnxruntime"]


def test_a_missed_agreement_is_exit_code_5_in_one_line(work, tmp_path, monkeypatch):
    from graphprune.int8 import search as int8_search

    judge = int8_search.Judge.__call__

    def half(self, model, calibration="", float_layers=0, limit=None):
        found = judge(self, model, calibration, float_layers, limit)
        return int8_search.Trial(calibration, float_layers, 0.5, found.distance)

    monkeypatch.setattr(int8_search.Judge, "__call__", half)
    target = tmp_path / "int8.onnx"
    code, out, err = run("quantize", work / "net.onnx", target, "--data", work / "images", *QUICK)
    assert code == 5
    assert "LESS THAN ASKED FOR" in out
    said = "int8 gives the answer of float32 on 50.00 % of the images; 99.00 % were asked for"
    assert err.splitlines()[-1] == f"error: {target}: {said}"
    assert target.exists()


class Depth(nn.Sequential):
    """A network without classes: one number a pixel."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))


def test_a_network_without_classes_has_no_answers_to_speak_of(work, tmp_path):
    torch.manual_seed(0)
    source, target = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    gp.export_onnx(Depth(), (torch.randn(2, 3, 8, 8),), source)
    strict = ("--min-agreement", "1", "--max-float-layers", "0", "--calibration", "minmax")
    code, out, err = run("quantize", source, target, "--data", work / "images", *QUICK, *strict)
    assert code == 5
    assert "answer" not in out + err
    assert "% of float32's variance on 8 images (MORE THAN ASKED FOR)" in out
    assert err.splitlines()[-1].endswith("% of float32's variance; at most 0.00 % were asked for")
    assert err.splitlines()[-1].startswith(f"error: {target}: the squared error of the outputs of int8 is ")


@pytest.mark.parametrize(
    ("dims", "batch"), [([6, 3, 8, 8], 6), (["n", 3, "h", "w"], 1), ([6, 3, "h", "w"], 6), (["n", 3, 8, 8], 1)]
)
def test_what_is_measured_has_the_batch_of_the_file_and_the_size_of_the_images(work, tmp_path, dims, batch):
    source, target = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    gp.export_onnx(Depth(), (torch.randn(2, 3, 8, 8),), source)
    model = onnx.load(source)
    del model.graph.value_info[:]
    for value, own in ((model.graph.input[0], dims), (model.graph.output[0], [dims[0], 1, *dims[2:]])):
        for dim, size in zip(value.type.tensor_type.shape.dim, own, strict=True):
            dim.CopyFrom(
                onnx.TensorShapeProto.Dimension(**{"dim_value" if isinstance(size, int) else "dim_param": size})
            )
    onnx.save(model, source)
    code, out, err = run("quantize", source, target, "--data", work / "images", *QUICK, *ANY, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["benchmark"]["batch"], found["benchmark"]["inputs"]) == (batch, {"input": [batch, 3, 8, 8]})
    assert [model["macs"] for model in found["models"]] == [(3 + 1) * 16 * 9 * 64] * 2
    assert found["int8"][0]["input_shape"] == [3, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("net.pt2", "out.onnx"), 1, "not an .onnx file"),
        (("missing.onnx", "out.onnx"), 1, "no such file"),
        (("net.onnx", "out.onnx", "--calibration", "mean"), 2, "--calibration"),
        (("net.onnx", "../work0/net.onnx", "--force"), 2, "is the float32 file itself"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(work, tmp_path, arguments, code, message):
    source, target, *options = arguments
    target = target.replace("work0", work.name)
    before = (work / "net.onnx").read_bytes()
    found, out, err = run("quantize", work / source, tmp_path / target, "--data", work / "images", *QUICK, *options)
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert (work / "net.onnx").read_bytes() == before


def two_inputs(folder):
    """An image and the scale it was resized by; boxes are divided by that."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
    net (float[n,3,8,8] image, float[n,1] scale) => (float[n,b] boxes) <int64 at = {0}> {
        features = Conv<kernel_shape = [3, 3]>(image, w)  flat = Flatten(features)  boxes = Div(flat, scale)
    }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "two.onnx")
    rng = np.random.default_rng(0)
    arrays = {"image": rng.random((20, 3, 8, 8), np.float32), "scale": 1 + rng.random((20, 1), np.float32)}
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "two.onnx", folder / "arrays.npz"


def test_arrays_for_several_inputs(tmp_path):
    source, arrays = two_inputs(tmp_path)
    code, out, err = run("quantize", source, tmp_path / "int8.onnx", "--inputs", arrays, *QUICK, *ANY, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["int8"][0]["input_shapes"] == {"image": [0, 3, 8, 8], "scale": [0, 1]}
    assert found["benchmark"]["inputs"] == {"image": [1, 3, 8, 8], "scale": [1, 1]}
    assert [model["macs"] for model in found["models"]] == [16 * 27 * 36] * 2


def test_images_for_a_file_that_needs_arrays(work, tmp_path):
    source, _ = two_inputs(tmp_path)
    code, _, err = run("quantize", source, tmp_path / "int8.onnx", "--data", work / "images", *QUICK)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: the model has 2 inputs ('image', 'scale')")
    assert err.endswith("give arrays for all of its inputs by name, as --inputs\n")


def test_images_or_arrays(work, tmp_path):
    arrays = ("--inputs", tmp_path / "a.npz")
    for options in ((), (*arrays, "--data", work / "images")):
        code, _, err = run("quantize", work / "net.onnx", tmp_path / "int8.onnx", *options)
        assert code == 2
        assert "--data" in err.splitlines()[-1]
        assert "--inputs" in err.splitlines()[-1]
    code, _, err = run("quantize", work / "net.onnx", tmp_path / "int8.onnx", *arrays)
    assert (code, err) == (1, f"error: no such file: {tmp_path / 'a.npz'}\n")

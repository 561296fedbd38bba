"""Files as they come: what can be quantized, and what is said of what cannot."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantizable import QUICK, SIZE, answers, exported, parsed, pictures
from torch import nn

import graphprune as gp
from graphprune.data import Preprocess
from graphprune.errors import DataError, ModelLoadError, OutputExistsError, UnsupportedModelError, UsageError
from graphprune.int8 import scheme
from graphprune.int8.preparation import prepare
from graphprune.int8.quantize import QuantizeOptions, quantize_onnx
from graphprune.int8.search import logger
from graphprune.verification.model_runner import open_runner

IMAGES = np.random.default_rng(0).random((48, 3, 8, 8)).astype(np.float32)

BROKEN = {
    "bare": "net (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Relu(x) }",
    "half": "net (float16[n,3,8,8] x) => (float16[n,4,6,6] y) <float16[4,3,3,3] w> { y = Conv(x, w) }",
    "half within": "net (float[n,3,8,8] x) => (float16[n,4,6,6] y) <float16[4,3,3,3] w> "
    "{ h = Cast<to = 10>(x) y = Conv(h, w) }",
    "inside": "net (float[n,3,8,8] x) => (float[n,4,6,6] y) <bool yes = {1}, float[4,3,3,3] w> { y = If(yes) "
    "<then_branch = one () => (a) { a = Conv(x, w) }, else_branch = two () => (b) { b = Conv(x, w) }> }",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("float"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BROKEN["bare"], "nothing to quantize, no layer has weights of its own"),
        (BROKEN["inside"], "no layer can be in int8: 'a' is in a body of 'If_0'; 'b' is"),
        (BROKEN["half"], "'Conv_0' computes in float16.*convert or export it in float32"),
        (BROKEN["half within"], "'Conv_0' computes in float16.*convert or export it in float32"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        quantize_onnx(parsed(tmp_path, text), tmp_path / "out.onnx", IMAGES, options=QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("given", ["r, s", "r, e, t"], ids=["scales", "sizes"])
def test_a_resize_that_names_its_axes(tmp_path, given):
    text = f"""net (float[n,3,8,8] x) => (float[n,4,h,w] y) <float[8,3,1,1] v, float[4,8,3,3] w, float[0] r, float[0] e,
    float[2] s = {{2, 2}}, int64[2] t = {{16, 16}}>
    {{ a = Conv(x, v) b = Resize<axes = [2, 3]>(a, {given}) y = Conv(b, w) }}"""
    source, target = parsed(tmp_path, text), tmp_path / "int8.onnx"
    report = quantize_onnx(source, target, IMAGES, options=QUICK)
    expected, found = (open_runner(path).run([IMAGES])[0] for path in (source, target))
    assert (report.float_layers, found.shape) == ((), (48, 4, 14, 14))
    assert ((found - expected) ** 2).sum() < 0.01 * (expected**2).sum()


def test_weights_that_are_computed_are_computed_ahead(tmp_path):
    text = """net (float[n,3,8,8] x) => (float[n,4] y) <float[768] stored, int64[2] shape = {192, 4}>
    { flat = Flatten(x) w = Reshape(stored, shape) y = MatMul(flat, w) }"""
    report = quantize_onnx(parsed(tmp_path, text), tmp_path / "int8.onnx", IMAGES, options=QUICK)
    assert report.layers == 1
    assert report.bytes_after < report.bytes_before


@pytest.mark.parametrize(
    ("opset", "out", "text"),
    [
        (10, "n,4,h,w", 'a = Conv(x, v) b = Resize<mode = "linear">(a, twice) y = Conv(b, w)'),
        (9, "n,4,h,w", 'a = Conv(x, v) b = Upsample<mode = "linear">(a, twice) y = Conv(b, w)'),
        (17, "n,4", "a = Conv(x, v) f = Flatten(a) y = Gemm<alpha = 0.5, beta = 20.0>(f, u, twice)"),
        (17, "n,4", "a = Conv(x, v) f = Flatten(a) y = Gemm<beta = 0.0>(f, u, twice)"),
        (11, "n,4,h,w", "t = Softmax<axis = 0>(v) a = Conv(x, t) y = Conv(a, w)"),
    ],
)
def test_what_is_prepared_of_a_file_computes_the_same(tmp_path, opset, out, text):
    """Operators that mean something else in the opset of int8, or that the quantizer or the evaluation misreads."""
    weights = "float[8,3,1,1] v, float[4,8,3,3] w, float[512,4] u, float[4] twice = {1, 1, 2, 2}"
    given = parsed(tmp_path, f"net (float[n,3,8,8] x) => (float[{out}] y) <{weights}> {{ {text} }}", opset)
    report = quantize_onnx(given, tmp_path / "int8.onnx", IMAGES, options=QUICK)
    expected, found = (open_runner(path).run([IMAGES])[0] for path in (given, tmp_path / "int8.onnx"))
    assert report.float_layers == ()
    assert ((found - expected) ** 2).sum() < 0.05 * ((expected - expected.mean(0)) ** 2).sum()


def test_int8_is_compared_with_the_file_that_was_given(source, tmp_path, monkeypatch):
    def careless(path):
        model = prepare(path)
        scaled = model.graph.initializer[0]
        scaled.CopyFrom(numpy_helper.from_array(-3 * numpy_helper.to_array(scaled), scaled.name))
        return model

    monkeypatch.setattr("graphprune.int8.work.prepare", careless)
    report = quantize_onnx(source, tmp_path / "int8.onnx", pictures(), options=QUICK)
    assert report.distance > 0.5


@pytest.mark.parametrize("noted", ["{", "[]", '{"mean": "x"}'])
def test_damaged_metadata(source, tmp_path, noted):
    model = onnx.load(source)
    model.metadata_props.add(key="graphprune_preprocessing", value=noted)
    onnx.save(model, tmp_path / "noted.onnx")
    with pytest.raises(UnsupportedModelError, match="graphprune_preprocessing cannot be read"):
        quantize_onnx(tmp_path / "noted.onnx", tmp_path / "int8.onnx", pictures(), options=QUICK)


def test_the_preprocessing_of_the_file_is_used(source, tmp_path):
    from PIL import Image

    from graphprune.inputs import DataOptions

    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(6):
        pixels = np.random.default_rng(at).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    seen, noted = Preprocess.of((SIZE, SIZE), mean=(9.0,), std=(0.5,)), tmp_path / "noted.onnx"
    model = onnx.load(source)
    model.metadata_props.add(key="graphprune_preprocessing", value=json.dumps(seen.to_dict()))
    onnx.save(model, noted)
    scales = []
    for file, data in ((source, None), (noted, None), (noted, DataOptions(mean=(0.5,), std=(0.5,)))):
        target = tmp_path / "int8.onnx"
        quantize_onnx(file, target, folder, options=QUICK, data=data, force=True)
        stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
        scales.append((float(stored["input_scale"]), int(stored["input_zero_point"])))
    assert scales[1] == pytest.approx((18 / 255, 255), rel=0.05)  # from -18 to 0
    assert scales[2] == pytest.approx((2 / 255, 128), rel=0.05)
    assert scales[0] != scales[1]


def test_a_file_that_is_quantized_already_is_refused(source, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_onnx(source, target, pictures(), options=QUICK)
    with pytest.raises(UnsupportedModelError, match="is quantized already"):
        quantize_onnx(target, tmp_path / "twice.onnx", pictures(), options=QUICK)


def test_bad_arguments_and_images(source, tmp_path):
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(OutputExistsError):
        quantize_onnx(source, tmp_path / "there.onnx", pictures())
    (tmp_path / "link.onnx").symlink_to(source)
    for target in (source, tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match="is the float32 file itself"):
            quantize_onnx(source, target, pictures(), force=True)
    with pytest.raises(ModelLoadError, match="no such file"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "out.onnx", pictures())
    with pytest.raises(DataError, match="at least two are needed"):
        quantize_onnx(source, tmp_path / "out.onnx", pictures(1))
    with pytest.raises(DataError, match="where the model takes"):
        quantize_onnx(source, tmp_path / "out.onnx", np.zeros((4, 3, 9, 9), np.float32))
    for wrong in ({"calibration": "mean"}, {"min_agreement": 1.5}, {"search_images": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("mean", "calibration")):
            QuantizeOptions(**wrong)
    with pytest.raises(UsageError):
        scheme.Scheme(activations="int4")


def test_few_images_are_halved_between_both_uses(source, tmp_path):
    report = quantize_onnx(source, tmp_path / "out.onnx", pictures(9))
    assert (report.calibration_images, report.search_images) == (3, 6)


def test_a_network_with_a_fixed_batch(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(0), nn.Unflatten(0, (4, -1)), nn.Linear(288, 5))
    source = gp.export_onnx(net, (torch.randn(4, 3, SIZE, SIZE),), tmp_path / "fixed.onnx")
    report = quantize_onnx(source, tmp_path / "int8.onnx", pictures(30), options=QUICK)
    assert report.agreement > 0.8


def test_weights_in_constant_nodes_are_weights(source, tmp_path):
    model = onnx.load(source)
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "constants.onnx")
    for name, file in (("a", source), ("b", tmp_path / "constants.onnx")):
        report = quantize_onnx(file, tmp_path / f"{name}.onnx", pictures(), options=QUICK)
        assert report.layers == 4
    expected, found = (answers(tmp_path / f"{name}.onnx", pictures(seed=1)) for name in "ab")
    np.testing.assert_array_equal(found, expected)


def test_an_old_file_lists_its_weights_as_inputs(source, tmp_path):
    model, target = onnx.load(source), tmp_path / "int8.onnx"
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "old.onnx")
    assert quantize_onnx(tmp_path / "old.onnx", target, pictures(), options=QUICK).layers == 4
    quantize_onnx(source, tmp_path / "new.onnx", pictures(), options=QUICK)
    assert [value.name for value in onnx.load(target).graph.input] == [onnx.load(source).graph.input[0].name]
    np.testing.assert_array_equal(*(answers(path, pictures(seed=1)) for path in (target, tmp_path / "new.onnx")))


def test_the_size_before_is_that_of_all_files(source, tmp_path):
    beside = tmp_path / "net.onnx"
    onnx.save(onnx.load(source), beside, save_as_external_data=True, location="net.data", size_threshold=0)
    report = quantize_onnx(beside, tmp_path / "int8.onnx", pictures(), options=QUICK)
    assert (
        report.bytes_before
        == beside.stat().st_size + (tmp_path / "net.data").stat().st_size
        > source.stat().st_size / 2
    )


def test_a_file_that_states_wrong_sizes_is_no_reason_to_refuse_it(tmp_path, caplog):
    text = "net (float[n,3,8,8] x) => (float[n,4] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
    report = quantize_onnx(parsed(tmp_path, text), tmp_path / "int8.onnx", IMAGES, options=QUICK)
    assert (report.layers, report.float_layers) == (1, ())
    assert "is not valid ONNX, and so is what is made of it" in caplog.text


def test_nothing_is_printed(source, tmp_path, capfd):
    quantize_onnx(source, tmp_path / "out.onnx", pictures(), options=QUICK)
    assert capfd.readouterr() == ("", "")
    assert logger.name == "graphprune"


def test_layers_behind_an_operator_that_onnx_does_not_know_are_in_int8(tmp_path):
    """Types of what comes from it are asked of onnxruntime; the quantizer takes nothing whose type it does not know."""
    path = parsed(
        tmp_path,
        """net (float[n,3,8,8] x) => (float[n,2] y)
        <float[8,3,3,3] w, float[8,8,3,3] v, float[8] c, float[2,8] u, float[2] b>
        { a = Conv(x, w) g = com.microsoft.Gelu(a) d = Conv(g, v, c) e = com.microsoft.Gelu(d)
          p = GlobalAveragePool(e) f = Flatten(p) y = Gemm <transB = 1> (f, u, b) }""",
    )
    model = onnx.load(path)
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.save(model, path)
    report = quantize_onnx(path, tmp_path / "int8.onnx", IMAGES, options=QUICK)
    assert (report.layers, report.unable) == (3, {})
    quantized = onnx.load(tmp_path / "int8.onnx")
    given = {name: node.op_type for node in quantized.graph.node for name in node.output}
    layers = [node for node in quantized.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [given[name] for node in layers for name in node.input[:2]] == ["DequantizeLinear"] * 6


def test_batch_norms_that_share_their_numbers_are_folded_before_int8(tmp_path):
    """In float32 the file would grow by it; in int8 it keeps layers from being rounded twice."""
    path = parsed(
        tmp_path,
        """net (float[n,3,8,8] x) => (float[n,4,8,8] y)
        <float[8,3,1,1] w, float[8,8,1,1] v, float[4,8,1,1] u, float[8] o>
        { a = Conv(x, w) b = BatchNormalization(a, o, o, o, o) c = Relu(b)
          d = Conv(c, v) e = BatchNormalization(d, o, o, o, o) f = Relu(e) y = Conv(f, u) }""",
        o=np.linspace(0.5, 1.5, 8),
    )
    assert "BatchNormalization" not in {node.op_type for node in prepare(path).graph.node}

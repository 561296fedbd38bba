"""Files as they come: what can be quantized, and what is said of what cannot."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphprune.errors import UnsupportedModelError
from graphprune.model_runner import open_runner
from graphprune.quantize import QuantizeOptions, quantize_onnx

QUICK = QuantizeOptions(calibration_images=16, search_images=32, min_agreement=0.0)
IMAGES = np.random.default_rng(0).random((48, 3, 8, 8)).astype(np.float32)

BROKEN = {
    "two": "net (float[n,3,8,8] x, float[n,3,8,8] z) => (float[n,3,8,8] y) { y = Add(x, z) }",
    "bare": "net (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Relu(x) }",
    "half": "net (float16[n,3,8,8] x) => (float16[n,4,6,6] y) <float16[4,3,3,3] w> { y = Conv(x, w) }",
    "half within": "net (float[n,3,8,8] x) => (float16[n,4,6,6] y) <float16[4,3,3,3] w> "
    "{ h = Cast<to = 10>(x) y = Conv(h, w) }",
    "bytes": "net (uint8[n,3,8,8] x) => (float[n,3,8,8] y) { y = Cast<to = 1>(x) }",
    "channels last": "net (float[n,8,8,3] x) => (float[n,3,8,8] y) { y = Transpose<perm = [0, 3, 1, 2]>(x) }",
}


def parsed(folder, text):
    path = folder / "m.onnx"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    for value in model.graph.value_info:  # a literal without numbers
        kind = value.type.tensor_type
        numbers = np.random.default_rng(0).standard_normal([dim.dim_value for dim in kind.shape.dim])
        numbers = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(numpy_helper.from_array(numbers, value.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BROKEN["two"], "single input of images"),
        (BROKEN["bare"], "nothing to quantize"),
        (BROKEN["half"], r"computes in float16 \('.'\); only float32"),
        (BROKEN["half within"], r"computes in float16 \('.'\); only float32"),
        (BROKEN["bytes"], "takes images in uint8; only one that takes them in float32"),
        (BROKEN["channels last"], r"channels last \(\?x8x8x3\)"),
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

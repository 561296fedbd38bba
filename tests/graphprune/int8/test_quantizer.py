"""int8 files: what they compute, and which integers stand for what."""

import dataclasses

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from quantizable import QUICK, answers, exported, pictures

from graphprune.errors import UnsupportedModelError
from graphprune.int8 import preparation, quantizer, scheme
from graphprune.int8.quantize import QuantizeOptions, quantize_onnx


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("float"))


def test_an_int8_file_computes_what_the_float_one_does(source, tmp_path):
    target = tmp_path / "int8.onnx"
    report = quantize_onnx(source, target, pictures(), options=QUICK)
    assert (report.layers, report.float_layers, report.reached) == (4, (), True)
    expected, found = answers(source, pictures(seed=1)), answers(target, pictures(seed=1))
    error = ((found - expected) ** 2).sum() / ((expected - expected.mean(0)) ** 2).sum()
    assert 0 < error < 0.05
    assert (report.bytes_before, report.bytes_after) == (source.stat().st_size, target.stat().st_size)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    weights = [array for array in stored.values() if array.dtype == np.int8 and array.ndim >= 2]
    assert len(weights) == 4
    if report.scheme.reduce_range:
        assert max(int(np.abs(array).max()) for array in weights) <= 64


def test_weights_are_symmetric_and_have_a_scale_a_channel(source, tmp_path):
    target = tmp_path / "int8.onnx"
    quantize_onnx(source, target, pictures(), options=QUICK)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    (kernel,) = [name for name, array in stored.items() if array.shape == (16, 16, 3, 3)]
    assert stored[kernel.replace("quantized", "scale")].shape == (16,)
    zeros = stored[kernel.replace("quantized", "zero_point")]
    assert not zeros.any()


def test_the_same_seed_gives_the_same_file(source, tmp_path):
    files = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        options = QuantizeOptions(calibration_images=8, search_images=8, min_agreement=0.0, seed=seed)
        quantize_onnx(source, file, pictures(), options=options)
    first, same, other = (file.read_bytes() for file in files)
    assert first == same
    assert first != other


def test_a_layer_left_out_comes_with_what_is_fused_into_it(source):
    model = preparation.prepare(source)
    seven_bits = scheme.Scheme(reduce_range=True)
    calibrated = quantizer.calibrate(model, [pictures(8).batch(slice(None))], seven_bits)
    convolutions = calibrated.layers[:3]
    left = onnx.load_model_from_string(calibrated.quantized(without=[convolutions[1]]))
    readers = {name: node.op_type for node in left.graph.node for name in node.input}
    kinds = {node.name: node for node in model.graph.node}
    second = kinds[convolutions[1]].output[0]
    assert readers[second] == "Add"  # no QuantizeLinear between them
    nothing = onnx.load_model_from_string(calibrated.quantized(without=calibrated.layers))
    assert not [t for t in nothing.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    alone = onnx.load_model_from_string(calibrated.quantized(only=[convolutions[0]]))
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in alone.graph.initializer) == 1


SHARED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n,3,8,8] x) => (float[n,m] y) <float[3,3,3,3] w = {{{weights}}}, float[3] b = {{0.1, 0.2, 0.3}}> {{
    first = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    second = Conv <pads = [1, 1, 1, 1]> (first, w, b)
    y = Flatten (second)
}}"""


def test_a_layer_left_in_float32_has_weights_of_its_own():
    weights = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).standard_normal(81))
    model = onnx.parser.parse_model(SHARED.format(weights=weights))
    for node in model.graph.node:
        node.name = node.output[0]
    calibrated = quantizer.calibrate(model, [pictures(8).batch(slice(None))], scheme.Scheme())
    assert calibrated.layers == ("first", "second")
    for options in ({"without": ["first"]}, {"only": ["second"]}):
        graph = onnx.load_model_from_string(calibrated.quantized(**options)).graph
        layers = {node.name: node for node in graph.node if node.op_type == "Conv"}
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        assert stored[layers["first"].input[1]].dtype == np.float32
        assert layers["second"].input[1] not in stored
    whole = onnx.load_model_from_string(calibrated.quantized()).graph
    assert sum(len(tensor.dims) == 4 for tensor in whole.initializer) == 1  # both share them still


@pytest.mark.parametrize("calibration", scheme.CALIBRATIONS)
def test_activations_that_are_no_numbers(source, tmp_path, calibration):
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(model, tmp_path / "net.onnx")
    options = dataclasses.replace(QUICK, calibration=calibration)
    with pytest.raises(UnsupportedModelError, match=r"no finite numbers|is not finite"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", pictures(), options=options)


def test_a_weight_that_is_no_number_is_named(source, tmp_path):
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if tensor.dims == [16, 16, 3, 3])
    numbers = numpy_helper.to_array(weight).copy()
    numbers[3, 2, 1, 0] = np.inf
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, tmp_path / "net.onnx")
    said = rf"the weight '{weight.name}' of '\w+' is not finite, it holds NaN or infinity: take a checkpoint"
    with pytest.raises(UnsupportedModelError, match=said):
        preparation.prepare(tmp_path / "net.onnx")


def test_kernels_that_saturate_get_7_bits(monkeypatch):
    for found in (True, False):
        monkeypatch.setattr(scheme, "saturates", lambda found=found: found)
        assert scheme.scheme_of_machine().reduce_range is (found and scheme.machine_facts().architecture != "arm64")
    assert scheme.scheme_of_machine(reduce_range=True).reduce_range


def test_saturation_is_as_the_instruction_set_says():
    features = scheme.machine_facts().features
    has_dot_product = {"avx512_vnni", "avx_vnni", "amx_int8"} & {*features}
    if scheme.machine_facts().instruction_set in {"avx2", "avx512"}:
        assert scheme.saturates() is not bool(has_dot_product)

"""Layers that onnxruntime cannot quantize or not run are found by trying; the others are quantized all the same."""

import numpy as np
import onnx
import pytest
from quantizable import noise, parsed

from graphprune.errors import UnsupportedModelError
from graphprune.int8 import quantizer, scheme
from graphprune.int8.preparation import prepare
from graphprune.int8.trial import tried_out

CHAIN = """net (float[n,4,8,8] x) => (float[n,4,2,2] y) <float[4,4,3,3] u, float[4,4,3,3] v, float[4,4,3,3] w> {
    a = Conv(x, u) r = Relu(a) b = Conv(r, v) m = MaxPool<kernel_shape = [1, 1]>(b) y = Conv(m, w)
}"""


@pytest.fixture
def calibrated(tmp_path):
    source = parsed(tmp_path, CHAIN)
    feeds = tuple(noise(source).values())
    return quantizer.calibrate(prepare(source), [feeds], scheme.Scheme()), feeds


def refusing(monkeypatch, is_bad):
    """Let the quantizer fail on nodes of some names."""
    from onnxruntime.quantization import QDQQuantizer

    should = QDQQuantizer.should_quantize_node

    def refuse(self, node):
        if (chosen := should(self, node)) and is_bad(node):
            raise ValueError(f"no way\nwith {node.name}")
        return chosen

    monkeypatch.setattr(QDQQuantizer, "should_quantize_node", refuse)


def weights_in_int8(content):
    stored = onnx.load_model_from_string(content).graph.initializer
    return {
        t.name.removesuffix("_quantized") for t in stored if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    }


def test_where_all_can_be_done_nothing_is_left(calibrated):
    whole, feeds = calibrated
    assert tried_out(whole, feeds) is whole
    assert weights_in_int8(whole.quantized()) == {"u", "v", "w"}


def test_the_layer_to_blame_is_left(calibrated, monkeypatch):
    refusing(monkeypatch, lambda node: node.name == "Conv_1")
    whole, feeds = calibrated
    found = tried_out(whole, feeds)
    assert found.left == {"Conv_1": "onnxruntime cannot quantize the model: no way with Conv_1"}
    assert found.layers == ("Conv_0", "Conv_2")
    assert weights_in_int8(found.quantized()) == {"u", "w"}


def test_the_operators_between_are_left_where_no_layer_is_to_blame(calibrated, monkeypatch, caplog):
    refusing(monkeypatch, lambda node: node.op_type == "MaxPool")
    whole, feeds = calibrated
    found = tried_out(whole, feeds)
    assert (found.left, found.layers_alone, found.layers) == ({}, True, whole.layers)
    assert weights_in_int8(found.quantized()) == {"u", "v", "w"}
    assert weights_in_int8(found.quantized(without=["Conv_0"])) == {"v", "w"}
    assert "the operators between the layers stay in float32" in caplog.text


def test_nothing_can_be_done(calibrated, monkeypatch):
    refusing(monkeypatch, lambda node: node.op_type == "Conv")
    with pytest.raises(UnsupportedModelError, match="cannot quantize the model: no way with Conv_0"):
        tried_out(*calibrated)


def test_a_layer_that_cannot_be_run_is_left(calibrated, monkeypatch):
    whole, feeds = calibrated
    make = quantizer.Calibrated._make

    def broken(self, chosen, without, *, is_some):
        content = make(self, chosen, without, is_some=is_some)
        if "Conv_2" not in chosen:
            return content
        model = onnx.load_model_from_string(content)
        node = next(node for node in model.graph.node if node.name == "Conv_2")
        node.attribute.append(onnx.helper.make_attribute("group", 3))
        return model.SerializeToString()

    monkeypatch.setattr(quantizer.Calibrated, "_make", broken)
    found = tried_out(whole, feeds)
    assert [*found.left] == ["Conv_2"]
    assert "the int8 model: onnxruntime" in found.left["Conv_2"]
    assert weights_in_int8(found.quantized()) == {"u", "v"}
    assert np.asarray(feeds[0]).any()

#!/usr/bin/env bash
# Expected: the int8 ONNX file that NNCF writes for a network with a depthwise convolution runs in onnxruntime; at
#   worst that one layer stays slow.
# Happens: NNCF gives the input of a depthwise convolution one scale a channel. onnxruntime fuses the layer into a
#   QLinearConv all the same, which takes one scale only: the session is made without a word, the first run is an
#   error. With optimizations off, or on "basic", the file runs and is right.
# Seen with: nncf 3.4.0, onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: MobileNet, EfficientNet and their kind are what people quantize for CPUs. A check that only loads
#   the file passes.
#   AdvancedQuantizationParameters(activations_quantization_params=QuantizationParameters(per_channel=False)) gives a
#   file that runs, with the layer in int8.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  nncf==3.4.0 openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import logging
from importlib.metadata import version

import nncf
import numpy as np
import onnx
import onnxruntime as ort
from nncf.quantization.advanced_parameters import QuantizationParameters
from onnx import TensorProto, helper, numpy_helper

nncf.set_log_level(logging.ERROR)
ort.set_default_logger_severity(4)
print("nncf", version("nncf"), "onnxruntime", ort.__version__)
rng = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)


graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu0"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="depthwise", group=32, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], name="relu1"),
        helper.make_node("Conv", ["d", "w2"], ["y"], name="last"),
    ],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 16, 16])],
    [weight("w0", 32, 32, 1, 1), weight("w1", 32, 1, 3, 3), weight("w2", 16, 32, 1, 1)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
images = [{"x": rng.random((1, 32, 16, 16)).astype(np.float32)} for _ in range(16)]
LEVELS = ort.GraphOptimizationLevel


def run(proto, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    print("  session made at", level.name)
    return session.run(None, images[0])[0]


def scale_sizes(proto):
    activations = {node.input[1] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    return {t.name: list(t.dims) for t in proto.graph.initializer if t.name in activations}


expected = run(model, LEVELS.ORT_DISABLE_ALL)
plain = nncf.quantize(model, nncf.Dataset(images), subset_size=16)
onnx.checker.check_model(plain, full_check=True)
print("scales of activations:", scale_sizes(plain))
assert [32] in scale_sizes(plain).values(), "no scale a channel any more"

basic = np.abs(run(plain, LEVELS.ORT_ENABLE_BASIC) - expected).max()
print("  largest difference from float32:", basic)
assert basic < 0.05 * np.abs(expected).max()
try:
    run(plain, LEVELS.ORT_ENABLE_ALL)
except Exception as error:
    print("  run refused:", str(error)[:60], "...", str(error)[-80:])
    assert "QLinearConv" in str(error)
else:
    raise SystemExit("onnxruntime runs the file now")

one = nncf.AdvancedQuantizationParameters(activations_quantization_params=QuantizationParameters(per_channel=False))
single = nncf.quantize(model, nncf.Dataset(images), subset_size=16, advanced_parameters=one)
print("one scale a tensor:", scale_sizes(single))
assert run(single, LEVELS.ORT_ENABLE_ALL).shape == expected.shape
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: a Pad with -inf in front of a MaxPool (the exact way to write a padding that never wins) is left in
#   float32, or the infinite padding is kept out of the ranges.
# Happens: the calibration takes -inf for a number that was seen. The scale of that tensor becomes infinite, its
#   integers and all that follows are meaningless. quantize_static ends normally; there are RuntimeWarnings of numpy
#   at best.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: MaxPool with "same" or uneven padding is exported as Pad with -inf by several converters. The same
#   network with the padding inside the MaxPool is quantized without trouble.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 ml_dtypes==0.6.0
venv/bin/python - <<'PYTHON'
import logging
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

warnings.simplefilter("ignore", RuntimeWarning)
logging.getLogger().setLevel(logging.ERROR)  # its advice to preprocess, which changes nothing here
ort.set_default_logger_severity(4)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
rng = np.random.default_rng(0)
images = [{"x": rng.random((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
stored = [
    numpy_helper.from_array(rng.standard_normal((8, 3, 1, 1)).astype(np.float32), "w"),
    numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
    numpy_helper.from_array(np.array(-np.inf, np.float32), "nothing"),
]


class Images(CalibrationDataReader):
    def __init__(self):
        self.images = iter(images)

    def get_next(self):
        return next(self.images, None)


def run(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, images[0])[0]


def compare(inside):
    if inside:
        nodes = [helper.make_node("MaxPool", ["x"], ["m"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    else:
        nodes = [
            helper.make_node("Pad", ["x", "pads", "nothing"], ["p"], name="pad"),
            helper.make_node("MaxPool", ["p"], ["m"], name="pool", kernel_shape=[3, 3]),
        ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", ["m", "w"], ["y"], name="conv")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        stored[:1] if inside else stored,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")
    quantize_static("float.onnx", "int8.onnx", Images())
    before, after = run("float.onnx"), run("int8.onnx")
    error = np.abs(after - before).max() / np.abs(before).max()
    scales = [numpy_helper.to_array(t) for t in onnx.load("int8.onnx").graph.initializer if t.name.endswith("_scale")]
    print("padding inside" if inside else "Pad with -inf", "scales:", [float(s.max()) for s in scales], "error:", error)
    return before, error, scales


before, error, scales = compare(inside=True)
assert error < 0.05
same, error, scales = compare(inside=False)
assert np.array_equal(before, same), "the two networks are the same in float32"
assert any(np.isinf(s).any() for s in scales) and not error < 0.5, "an infinite padding is looked after now"
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: quantize_static gives every tensor the range that was seen for it. A convolution whose result is an
#   output of the network and also goes into a Relu keeps its negative numbers in the first place.
# Happens: the range of a Relu's (or Clip's) result is put on its input wherever the Relu is its only *node*; that it
#   is an output as well is not looked at. Every negative number of that output becomes 0.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: networks that hand out features (necks, embeddings, taps for distillation) have such outputs. The
#   other outputs are right, so a check of accuracy passes. An Identity node in front of the output cures it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 ml_dtypes==0.6.0
venv/bin/python - <<'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

logging.getLogger().setLevel(logging.ERROR)  # its advice to preprocess, which changes nothing here
ort.set_default_logger_severity(4)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
rng = np.random.default_rng(0)
images = [{"x": rng.random((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
weight = numpy_helper.from_array(rng.standard_normal((16, 3, 1, 1)).astype(np.float32), "w")


class Images(CalibrationDataReader):
    def __init__(self):
        self.images = iter(images)

    def get_next(self):
        return next(self.images, None)


def run(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(["tap"], images[0])[0]


def lowest(aside):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c" if aside else "tap"], name="conv"),
        helper.make_node("Relu", ["c" if aside else "tap"], ["y"], name="relu"),
    ]
    nodes += [helper.make_node("Identity", ["c"], ["tap"], name="aside")] if aside else []
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in ("y", "tap")],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")
    quantize_static("float.onnx", "int8.onnx", Images(), per_channel=True)
    before, after = run("float.onnx"), run("int8.onnx")
    what = "with an Identity aside" if aside else "as it is"
    print(f"{what}: lowest number in float32 {before.min():.3f}, in int8 {after.min():.3f}")
    return before.min(), after.min()


before, after = lowest(aside=True)
assert after < 0.9 * before < 0, "the cure does not help any more"
before, after = lowest(aside=False)
assert before < -0.5 and after == 0, "the output keeps its negative numbers now"
print("still so")
PYTHON

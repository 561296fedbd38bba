#!/usr/bin/env bash
# Expected: quantize_static(per_channel=True) on a file of opset 11 or 12 raises the opset, falls back to one scale a
#   tensor, or refuses the file.
# Happens: it writes DequantizeLinear nodes with an axis, which exists from opset 13 on, and leaves the opset at 11.
#   No word is said; the file it returns can be loaded neither by the checker nor by onnxruntime.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: files of Paddle, Keras and older torch exporters have opset 11 or 12, and one scale a channel is
#   what keeps depthwise layers usable in int8. Convert to opset 13 first, and compare the numbers (the converter has
#   traps).
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


class Images(CalibrationDataReader):
    def __init__(self):
        self.images = iter([{"x": rng.random((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.images, None)


def quantized(opset, per_channel):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
        [numpy_helper.from_array(rng.standard_normal((16, 3, 1, 1)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, "float.onnx")
    quantize_static("float.onnx", "int8.onnx", Images(), per_channel=per_channel)
    return onnx.load("int8.onnx")


def verdicts(model):
    found = []
    for judge in (
        lambda: onnx.checker.check_model(model, full_check=True),
        lambda: ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]),
    ):
        try:
            judge()
            found.append("fine")
        except Exception as error:
            found.append(next(line for line in str(error).splitlines() if "axis" in line)[-80:])
    return found


for opset, per_channel in ((13, True), (11, False), (11, True)):
    model = quantized(opset, per_channel)
    found = verdicts(model)
    print(f"opset {opset}, per_channel={per_channel}: written with opset {model.opset_import[0].version};", found)
    if (opset, per_channel) == (11, True):
        assert model.opset_import[0].version == 11, "the opset is raised now"
        assert all("axis" in verdict for verdict in found), "the file is valid now"
    else:
        assert found == ["fine", "fine"]
print("still so")
PYTHON

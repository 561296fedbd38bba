#!/usr/bin/env bash
# Expected: the options of quantize_static that save memory or smooth the ranges do what they are called:
#   CalibMaxIntermediateOutputs bounds how many images are held at a time, CalibMovingAverageConstant says how fast a
#   moving average moves.
# Happens: with CalibMaxIntermediateOutputs=N the ranges of every N images are thrown away without having been used.
#   Only those after the last full N count, and when the number of images is a multiple of N, "No data is collected"
#   is all that comes. CalibMovingAverageConstant changes nothing at all; the average is a plain mean over the
#   images.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: memory is why people set the first option, on large images. Ranges from the last few images clip
#   the rest, and the file looks like any other.
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
weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
    [weight],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")


class Images(CalibrationDataReader):
    def __init__(self, brightness):
        self.images = iter([{"x": np.full((1, 1, 4, 4), b, np.float32)} for b in brightness])

    def get_next(self):
        return next(self.images, None)


def largest(brightness, **options):
    """The largest input that the int8 file can tell from larger ones."""
    quantize_static("float.onnx", "int8.onnx", Images(brightness), extra_options=options)
    scale = next(t for t in onnx.load("int8.onnx").graph.initializer if t.name == "x_scale")
    found = round(float(numpy_helper.to_array(scale).item()) * 255, 2)
    print("images", brightness, options, "-> range 0 ..", found)
    return found


images = [100, 1, 1, 1, 1, 1, 1, 2]
assert largest(images) == 100
assert largest(images, CalibMaxIntermediateOutputs=9) == 100
assert largest(images, CalibMaxIntermediateOutputs=3) == 2, "all images count now"
try:
    largest(images, CalibMaxIntermediateOutputs=4)
except ValueError as error:
    print("8 images, 4 at a time:", error)
else:
    raise SystemExit("a number of images that divides is fine now")

ramp = [1, 1, 1, 1, 9, 9, 9, 9]
averages = {largest(ramp, CalibMovingAverage=True, CalibMovingAverageConstant=c) for c in (0.01, 0.5, 0.99)}
assert averages == {5.0}, "the constant of the moving average is used now"
print("still so")
PYTHON

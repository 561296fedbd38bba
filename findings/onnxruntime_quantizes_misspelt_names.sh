#!/usr/bin/env bash
# Expected: a name in nodes_to_exclude, nodes_to_quantize or op_types_to_quantize that the network does not have is
#   an error, or at least a warning (NNCF refuses such names).
# Happens: nothing is said. A layer that was to stay in float32 becomes int8; with the other two options nothing is
#   quantized at all, and the float file is written under the new name, marked as made by the quantizer.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2.
# Why it matters: names change when a file is simplified, optimized or exported anew, and a list of sensitive layers
#   is usually made on another copy. Compare the numbers of QuantizeLinear nodes, not the exit status.
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

ort.set_default_logger_severity(4)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
rng = np.random.default_rng(0)
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="stem"),
        helper.make_node("Conv", ["a", "w1"], ["y"], name="head"),
    ],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
    [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
        for n, s in (("w0", (8, 3, 1, 1)), ("w1", (4, 8, 1, 1)))
    ],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")


class Images(CalibrationDataReader):
    def __init__(self):
        self.images = iter([{"x": rng.random((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.images, None)


def integers(**options):
    said.clear()
    quantize_static("float.onnx", "int8.onnx", Images(), **options)
    model = onnx.load("int8.onnx")
    weights = sum(t.data_type == TensorProto.INT8 and len(t.dims) == 4 for t in model.graph.initializer)
    about = [line for line in said if any(name in line for names in options.values() for name in names)]
    print(options, "->", weights, "of 2 weights in int8, producer", model.producer_name, "- said of it:", about)
    assert not about, "unknown names are spoken of now"
    return weights


assert integers(nodes_to_exclude=["head"]) == 1
assert integers(nodes_to_exclude=["/head"]) == 2, "an unknown name to exclude is noticed now"
assert integers(nodes_to_quantize=["/head"]) == 0, "an unknown name to quantize is noticed now"
assert integers(op_types_to_quantize=["Conv2D"]) == 0, "an unknown operator is noticed now"
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: the size that onnxruntime states for the result of a Resize is the size that comes out.
# Happens: with some scales the stated size is one less. The scale is a float32: 0.7 is a little below 0.7, so
#   inference finds floor(10 * 0.69999999) = 6, the kernel rounds the product first and makes 7. Behind a Flatten
#   this leaves no way out: a Gemm for 6 x 6 is loaded and cannot run, one for 7 x 7 runs and cannot be loaded.
# Seen with: onnxruntime 1.32.0, onnx 1.23.2 (its shape inference says 6 as well). 10, 20, 30 or 40 pixels by 0.7,
#   0.9, 1.3 or 1.4 do it.
# Why it matters: shapes stated in a file are what tools compute with (counts of multiply-accumulates, where to cut,
#   what fits), and here they are wrong for a plain network. Give sizes instead of scales.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, shape_inference

ort.set_default_logger_severity(4)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)


def build(scale, features=None):
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="linear")]
    stored = [numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")]
    if features:
        nodes += [helper.make_node("Flatten", ["r"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
        stored.append(numpy_helper.from_array(np.zeros((features, 5), np.float32), "w"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 10, 10])],
        [helper.make_tensor_value_info("y" if features else "r", TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def load(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


feeds = {"x": np.zeros((1, 1, 10, 10), np.float32)}
wrong = []
for scale in (0.5, 0.7, 0.8, 0.9, 1.3, 1.4, 1.5):
    model = build(scale)
    session = load(model)
    stated, made = session.get_outputs()[0].shape, list(session.run(None, feeds)[0].shape)
    dims = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    print(f"10 x 10 by {scale}: onnxruntime states {stated}, makes {made}; onnx infers {[d.dim_value for d in dims]}")
    wrong += [scale] if stated != made else []
assert wrong == [0.7, 0.9, 1.3, 1.4], "the stated sizes have changed"

session = load(build(0.7, 36))
try:
    session.run(None, feeds)
except Exception as error:
    print("Gemm for 6 x 6: loaded;", str(error)[-60:])
else:
    raise SystemExit("a Gemm for 6 x 6 runs now")
try:
    load(build(0.7, 49))
except Exception as error:
    print("Gemm for 7 x 7:", str(error)[-80:])
else:
    raise SystemExit("a Gemm for 7 x 7 can be loaded now")
print("still so")
PYTHON

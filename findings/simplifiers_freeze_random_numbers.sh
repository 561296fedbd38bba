#!/usr/bin/env bash
# Expected: folding constants leaves operators of chance alone. RandomNormal, RandomUniform and Bernoulli have no
#   input that changes, but give new numbers in every run.
# Happens: onnxslim and onnx-graphsurgeon (fold_constants) compute them once and store the numbers. Every run then
#   adds the same noise, and the file grows by the noise's size.
# Seen with: onnxslim 0.1.98, onnx-graphsurgeon 0.6.1, onnx 1.23.2, onnxruntime 1.32.0. (onnxsim 0.8.1 and onnxscript
#   0.7.2 leave RandomNormal alone.)
# Why it matters: networks that sample (noise in super-resolution and vocoders, dropout kept for uncertainty, the
#   decoder of a VAE) lose what they are for, and a check with a fixed input finds the frozen file more stable than
#   the original.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 onnxslim==0.1.98 onnx-graphsurgeon==0.6.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import onnxslim
from importlib.metadata import version
from onnx import TensorProto, helper

print("onnxslim", version("onnxslim"), "onnx-graphsurgeon", version("onnx-graphsurgeon"))
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
shape = [1, 4, 16, 16]
graph = helper.make_graph(
    [helper.make_node("RandomNormal", [], ["noise"], shape=shape), helper.make_node("Add", ["x", "noise"], ["y"])],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)


def fold(proto):
    return gs.export_onnx(gs.import_onnx(proto).fold_constants().cleanup())


def changes(what, proto):
    loaded = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = (loaded.run(None, {"x": np.zeros(shape, np.float32)})[0] for _ in range(2))
    found = float(np.abs(first - second).max())
    size = len(proto.SerializeToString())
    print(f"{what}: {[n.op_type for n in proto.graph.node]}, {size} bytes, two runs differ by {found:.2f}")
    return found


assert changes("given", model) > 0.1
assert changes("onnxslim", onnxslim.slim(model)) == 0, "onnxslim leaves chance alone now"
assert changes("onnx-graphsurgeon", fold(model)) == 0, "onnx-graphsurgeon leaves chance alone now"
print("still so")
PYTHON

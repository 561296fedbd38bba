#!/usr/bin/env bash
# Expected: "fuse BatchNormalization into Conv" multiplies the weights: one node less, the four vectors of the
#   BatchNormalization gone, a smaller file.
# Happens: onnxoptimizer writes the multiplication down as nodes (Add, Sqrt, Div, Unsqueeze, Cast, Mul, Sub ...),
#   which work on the old weights. Every BatchNormalization becomes ten nodes, the file grows, and the convolution no
#   longer has a constant weight.
# Seen with: onnxoptimizer 0.4.2, onnx 1.23.2.
# Why it matters: the sum is done when the file is loaded, if the runtime folds constants; but whatever reads the
#   file before (a quantizer, a pruner, a counter of parameters, a converter) finds a convolution whose weight is
#   computed. Constants have to be folded afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnxoptimizer==0.4.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxoptimizer
import onnxruntime as ort
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper

print("onnxoptimizer", version("onnxoptimizer"), "onnx", onnx.__version__)
rng = np.random.default_rng(0)
stored = {"w": rng.standard_normal((16, 3, 3, 3)), "s": rng.random(16) + 0.5, "b": rng.standard_normal(16)}
stored |= {"m": rng.standard_normal(16), "v": rng.random(16) + 0.5}
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"]),
    ],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
    [numpy_helper.from_array(a.astype(np.float32), n) for n, a in stored.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
fused = onnxoptimizer.optimize(model, ["fuse_bn_into_conv"])
kinds = [node.op_type for node in fused.graph.node]
print(len(model.graph.node), "nodes become", len(kinds), kinds)
print(len(model.SerializeToString()), "bytes become", len(fused.SerializeToString()))
conv = next(node for node in fused.graph.node if node.op_type == "Conv")
constant = {t.name for t in fused.graph.initializer}
print("weight and bias of the convolution are constants:", [name in constant for name in conv.input[1:]])
x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
before, after = (
    ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    for m in (model, fused)
)
assert np.allclose(before, after, atol=1e-4), "the fused network must at least compute the same"
assert "BatchNormalization" not in kinds
assert len(kinds) >= 8 and conv.input[1] not in constant, "the numbers are folded now"
assert len(fused.SerializeToString()) > len(model.SerializeToString())
print("still so")
PYTHON

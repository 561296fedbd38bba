#!/usr/bin/env bash
# Expected: a product of a convolution with a constant is folded into the weights where the constant is one factor a
#   channel, shape (C, 1, 1), and left alone otherwise. By the rules of broadcasting a plain vector runs along the
#   last dimension, which is the width.
# Happens: onnxslim folds a vector of C numbers as if it were one factor a channel. Nothing complains as long as the
#   width happens to be C. The result is another function.
# Seen with: onnxslim 0.1.98, onnx 1.23.2, onnxruntime 1.32.0.
# Why it matters: windows, position weights and masks along the width are such vectors, and widths and channels are
#   both powers of two. slim() without its check reports a smaller file; the numbers have to be compared.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper

print("onnxslim", version("onnxslim"), "onnxruntime", ort.__version__)
rng = np.random.default_rng(0)


def build(factor, width):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "k"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 4, width])],
        [
            numpy_helper.from_array(rng.standard_normal((16, 3, 1, 1)).astype(np.float32), "w"),
            numpy_helper.from_array(factor, "k"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compare(what, factor, width):
    model = build(factor.astype(np.float32), width)
    onnx.checker.check_model(model, full_check=True)
    feeds = {"x": rng.standard_normal((1, 3, 4, width)).astype(np.float32)}
    slim = onnxslim.slim(model)
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (model, slim)
    )
    error = np.abs(after - before).max() / np.abs(before).max()
    print(f"{what}: {[n.op_type for n in slim.graph.node]}, largest difference {error:.1e} of the scale")
    return error


window = np.linspace(0, 1, 16)
assert compare("one factor a channel, (16, 1, 1)", window[:, None, None], 16) < 1e-5
assert compare("one factor a row, (4, 1)", window[:4, None], 16) < 1e-5
wrong = compare("one factor a column, (16,), width 16", window, 16)
assert wrong > 0.1, "a factor along the width is left alone now"
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: a Pad with zeros in front of a MaxPool stays, or becomes pads of the MaxPool only where nothing below
#   zero can arrive: the pads of a MaxPool never win, zeros do.
# Happens: onnxoptimizer's fuse_pad_into_pool puts the zeros into the pads of the MaxPool whatever comes in. At the
#   border, maxima of negative numbers come out negative instead of 0. (A Pad in front of an AveragePool that has
#   pads of its own without counting them changes the numbers as well.)
# Seen with: onnxoptimizer 0.4.2, onnx 1.23.2, onnxruntime 1.32.0.
# Why it matters: the pass is among the default ones. Pad with zeros and MaxPool is how Keras's ResNets begin, in
#   their V2 without a Relu before, so that half of the numbers are negative. Most images look almost the same
#   afterwards.
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

print("onnxoptimizer", version("onnxoptimizer"), "onnxruntime", ort.__version__)
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 4, 8, 8)).astype(np.float32) - 2


def build(kind, **pool):
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["x", "pads"], ["p"]),
            helper.make_node(kind, ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2], **pool),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, None, None])],
        [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def change(model):
    onnx.checker.check_model(model, full_check=True)
    result = onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes())
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, result)
    )
    print([n.op_type for n in result.graph.node], "corner:", before[0, 0, 0, 0], "->", after[0, 0, 0, 0])
    return np.abs(after - before).max()


assert "fuse_pad_into_pool" in onnxoptimizer.get_fuse_and_elimination_passes()
assert change(build("AveragePool")) < 1e-5, "an AveragePool alone was right"
assert change(build("MaxPool")) > 0.5, "Pad with zeros and MaxPool are kept apart now"
assert change(build("AveragePool", pads=[1, 1, 1, 1])) > 0.01, "an AveragePool with pads of its own is right now"
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: onnx.version_converter writes the same function in another opset, or says that it cannot.
# Happens: two old traps are not handled, and nothing is said. Up: Resize of opset 10 (and Upsample of 9) looks up
#   positions without the half pixel. The converter leaves the attributes out, and the defaults of opset 11 and later
#   are with it: every linear upsampling changes. Down: Softmax of opset 13 and later works along one axis, before
#   that along it and all behind it. The converter keeps the axis as it is: a softmax over the channels of a map
#   becomes one over channels and positions together.
# Seen with: onnx 1.23.2, onnxruntime 1.32.0.
# Why it matters: int8 with a scale a channel needs opset 13, so old segmentation and pose networks go up first;
#   older runtimes and NPU compilers ask for 11 or 12, so new ones go down. The result loads, runs and looks
#   plausible.
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
from onnx import TensorProto, helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", ort.__version__)
x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
twice = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")


def change(node, size, opset, target, stored=()):
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, size, size])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    converted = version_converter.convert_version(model, target)
    onnx.checker.check_model(converted, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    before, after = (
        ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, converted)
    )
    error = np.abs(after - before).max() / np.abs(before).max()
    last = converted.graph.node[-1]
    attributes = [a.name for a in last.attribute]
    print(f"{node.op_type} {opset} -> {target}: {last.op_type} {attributes}, changes by {error:.1e} of the scale")
    return error


resize = helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")
upsample = helper.make_node("Upsample", ["x", "scales"], ["y"], mode="linear")
softmax = helper.make_node("Softmax", ["x"], ["y"], axis=1)
assert change(softmax, 8, 11, 13) < 1e-6, "Softmax upwards was right"
assert change(resize, 16, 10, 13, [twice]) > 0.01, "Resize upwards is right now"
assert change(upsample, 16, 9, 13, [twice]) > 0.01, "Upsample upwards is right now"
assert change(softmax, 8, 13, 11) > 0.1, "Softmax downwards is right, or refused, now"
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: onnx.reference.ReferenceEvaluator computes what the operators of the file's opset are defined to compute,
#   so that a converted or pruned file can be checked against it.
# Happens: it has one way to compute many operators, the newest. Softmax of opset 11 (along the axis and all behind
#   it) is computed as that of opset 13 (along the axis alone), silently. DequantizeLinear of opset 13 to 18 cannot
#   be run at all, so no int8 file of those opsets can. LRN is wrong in every opset.
# Seen with: onnx 1.23.2, compared with onnxruntime 1.32.0 and with the formulas in numpy.
# Why it matters: it is the obvious judge when two runtimes disagree, and tools fold constants with it. Ask a second
#   one.
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
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

ort.set_default_logger_severity(4)
print("onnx", onnx.__version__, "onnxruntime", ort.__version__)
x = np.random.default_rng(0).standard_normal((1, 5, 3, 3)).astype(np.float32)


def build(opset, *nodes, stored=()):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    return model


def compare(what, model, formula):
    runtime = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    reference = ReferenceEvaluator(model).run(None, {"x": x})[0]
    found = tuple(float(np.abs(got - formula).max()) for got in (runtime, reference))
    print(f"{what}: off the formula by {found[0]:.1e} (onnxruntime), {found[1]:.1e} (reference evaluator)")
    assert found[0] < 1e-5
    return found[1]


def softmax(values, axis):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
assert compare("Softmax, opset 13", build(13, node), softmax(x, 1)) < 1e-5
together = softmax(x.reshape(1, -1), 1).reshape(x.shape)
assert compare("Softmax, opset 11", build(11, node), together) > 0.1, "Softmax of opset 11 is right now"

squares = np.stack([(x[:, max(0, c - 1) : c + 2] ** 2).sum(1) for c in range(5)], 1)
lrn = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.3, beta=0.75, bias=1.0)
assert compare("LRN, opset 13", build(13, lrn), x / (1 + 0.3 / 3 * squares) ** 0.75) > 0.01, "LRN is right now"

stored = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
pair = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
]
rounded = np.clip(np.rint(x / np.float32(0.1)), -128, 127).astype(np.float32) * np.float32(0.1)
assert compare("int8, opset 19", build(19, *pair, stored=stored), rounded) < 1e-5
try:
    ReferenceEvaluator(build(17, *pair, stored=stored)).run(None, {"x": x})
except RuntimeError as error:
    print("int8, opset 17:", error)
    assert "DequantizeLinear" in str(error)
else:
    raise SystemExit("int8 files of opset 17 can be run now")
print("still so")
PYTHON

#!/usr/bin/env bash
# Expected: a pruner that removes channels from a layer looks who else uses the layer's numbers, and gives the other
#   one its own copy, or leaves both alone.
# Happens: onnxsim's structured pruning cuts the initializer itself. Two layers whose biases are equal (all zero,
#   say) are enough: onnxsim's own simplify() merges them into one, apply_structured_pruning_cpp() then shortens it
#   for one layer, and the other layer can no longer run. Where a weight is shared, the other layer silently gives
#   fewer channels.
# Seen with: onnxsim 0.8.1, onnx 1.23.2, onnxruntime 1.32.0.
# Why it matters: exporters and simplifiers merge equal constants all the time, so "simplify, then prune" is the
#   order that goes wrong. The file passes the checker; it has to be run to be believed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnxsim==0.8.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(4)
print("onnxsim", version("onnxsim"), "onnxruntime", ort.__version__)
rng = np.random.default_rng(0)
weak = [1, 2, 5, 6, 8, 11, 12, 15]  # half of the channels of the first layer do nothing


def conv(x, w, b, y):
    return helper.make_node("Conv", [x, w, b], [y], pads=[1, 1, 1, 1])


def value(name, channels):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])


sizes = ((16, 3, 3, 3), (4, 16, 3, 3), (16, 3, 3, 3))
first, second, third = (rng.standard_normal(s).astype(np.float32) for s in sizes)
first[weak], second[:, weak] = 0, 0
zeros = np.zeros(16, np.float32)
graph = helper.make_graph(
    [
        conv("x", "w0", "b0", "a"),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("r", "w1", "b1", "y"),
        conv("x", "w2", "b2", "z"),  # a second head, which has nothing to do with the first
    ],
    "net",
    [value("x", 3)],
    [value("y", 4), value("z", 16)],
    [
        numpy_helper.from_array(a, n)
        for n, a in {"w0": first, "w1": second, "w2": third, "b0": zeros, "b1": zeros[:4], "b2": zeros}.items()
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}


def run(proto):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


expected = run(model)
cut = onnxsim.apply_structured_pruning_cpp(model, sparsity=0.5)
difference = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(run(cut), expected, strict=True))
print(f"as it is, half of the first layer cut: largest difference {difference:.1e} of the scale")
assert difference < 1e-5

simple, _ = onnxsim.simplify(model)
print("inputs of the layers after simplify():", [list(n.input) for n in simple.graph.node if n.op_type == "Conv"])
assert len({n.input[2] for n in simple.graph.node if n.op_type == "Conv"}) == 2, "equal biases are not merged any more"
cut = onnxsim.apply_structured_pruning_cpp(simple, sparsity=0.5)
onnx.checker.check_model(cut)
print("sizes after the cut:", {t.name: list(t.dims) for t in cut.graph.initializer}, "- the checker is content")
try:
    run(cut)
except Exception as error:
    print("onnxruntime:", str(error)[-110:])
    assert "bias" in str(error)
else:
    raise SystemExit("simplified and pruned, the file runs now")

shared = onnx.ModelProto()
shared.CopyFrom(model)
del shared.graph.node[3].input[1:]
shared.graph.node[3].input.append("w0")  # the second head has the first layer's weight, and no bias
shapes = [a.shape for a in run(onnxsim.apply_structured_pruning_cpp(shared, sparsity=0.5))]
print("shared weight: outputs", [a.shape for a in run(shared)], "become", shapes)
assert shapes[1] == (1, 8, 8, 8), "the other user of a shared weight is looked after now"
print("still so")
PYTHON

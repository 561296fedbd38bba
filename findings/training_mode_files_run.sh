#!/usr/bin/env bash
# Expected: an inference runtime refuses a file that was exported in training mode, or takes BatchNormalization and
#   Dropout in it as those of inference; an optimizer leaves such nodes alone.
# Happens: onnxruntime runs them as they stand, at every level: BatchNormalization works with the mean and variance
#   of the batch it is given, so the answer for one image depends on the others; Dropout throws away at random,
#   differently in every run. onnxscript's optimizer folds a BatchNormalization in training mode into the convolution
#   with the stored statistics, as if it were one of inference; the file before and after are two functions.
# Seen with: onnxruntime 1.32.0, onnxscript 0.7.2 with onnx-ir 1.1.0, onnx 1.23.2.
# Why it matters: one forgotten eval() before the export makes such a file. It loads, runs and gives plausible
#   numbers, and "before" and "after" of a compression then differ for a reason that is not the compression.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 onnx-ir==1.1.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer

print("onnxruntime", ort.__version__, "onnxscript", version("onnxscript"), "onnx", onnx.__version__)
rng = np.random.default_rng(0)
images = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def build(nodes, channels, stored):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 8, 8])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


vectors = {"s": np.ones(8), "b": np.zeros(8), "m": np.full(8, 3), "v": np.full(8, 4)}
norm = build(
    [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node(
            "BatchNormalization", ["a", "s", "b", "m", "v"], ["c", "mean", "variance"], training_mode=1
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ],
    8,
    [
        tensor("w", rng.standard_normal((8, 3, 1, 1)).astype(np.float32)),
        *(tensor(name, array.astype(np.float32)) for name, array in vectors.items()),
    ],
)
alone, together = (session(norm).run(None, {"x": x})[0][0] for x in (images[:1], images))
print("BatchNormalization: the first image alone and beside another differ by", np.abs(alone - together).max())
assert np.abs(alone - together).max() > 0.1, "BatchNormalization is taken as that of inference now"
folded = ir.to_proto(optimizer.optimize(ir.from_proto(norm)))
difference = np.abs(session(folded).run(None, {"x": images})[0][0] - together).max()
print("onnxscript's optimizer:", [n.op_type for n in folded.graph.node], "differs by", difference)
assert difference > 0.1, "the optimizer leaves it alone now"

drop = build(
    [helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])],
    3,
    [tensor("ratio", np.float32(0.5)), tensor("training", np.array(True))],
)
loaded = session(drop)
first, second = (loaded.run(None, {"x": images})[0] for _ in range(2))
print("Dropout: zeros in two runs", (first == 0).sum(), (second == 0).sum(), "of", first.size)
assert (first == 0).sum() > 50 and not np.array_equal(first, second), "Dropout does nothing now"
print("still so")
PYTHON

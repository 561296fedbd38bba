#!/usr/bin/env bash
# Expected: for one file there is one answer to how large the result of a pooling with ceil_mode is.
# Happens: where the last window would lie in the padding altogether (7 pixels, kernel 2, stride 2, padding 1),
#   PyTorch and onnxruntime's kernels leave it out and make 4. Shape inference of onnx, and so that of onnxruntime
#   when it loads a file, counts it below opset 22: 5. OpenVINO makes 5 x 5 numbers, in every opset. With a Flatten
#   and a Gemm behind it no size is right in opset 13 to 21: a Gemm for 4 x 4 cannot be loaded, one for 5 x 5 is
#   loaded and cannot run.
# Seen with: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1.
# Why it matters: such poolings come from PyTorch with ceil_mode=True. Tools that believe inferred shapes see layers
#   that do not fit, and a network checked in one runtime gives maps of another size in the next. Opset 22 cures the
#   first two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper, shape_inference

ort.set_default_logger_severity(4)
print("onnx", onnx.__version__, "onnxruntime", ort.__version__, "openvino", ov.__version__)
x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7) + 1


def build(opset, padding, features=None):
    pads = [padding] * 4
    nodes = [helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2], pads=pads, ceil_mode=1)]
    stored = []
    if features:
        nodes += [helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
        stored.append(numpy_helper.from_array(np.zeros((features, 3), np.float32), "w"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
            if features
            else helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 1, None, None])
        ],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def load(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def sizes(opset, padding):
    model = build(opset, padding)
    onnx.checker.check_model(model, full_check=True)
    inferred = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    ran = load(model).run(None, {"x": x})[0]
    onnx.save(model, "pool.onnx")
    other = ov.Core().compile_model("pool.onnx", "CPU")(x)[0]
    found = tuple(int(s) for s in (inferred[-1].dim_value, ran.shape[-1], other.shape[-1]))
    print(f"opset {opset}, padding {padding}: inferred {found[0]}, onnxruntime {found[1]}, openvino {found[2]}")
    return found


assert sizes(17, 0) == (4, 4, 4)
assert sizes(17, 1) == (5, 4, 5), "they have come closer at opset 17"
assert sizes(22, 1) == (4, 4, 5), "they have come closer at opset 22"

assert load(build(22, 1, 16)).run(None, {"x": x})[0].shape == (1, 3)
try:
    load(build(17, 1, 16))
except Exception as error:
    print("opset 17, Gemm for 4 x 4, loading:", str(error)[-80:])
else:
    raise SystemExit("a Gemm for 4 x 4 can be loaded now")
session = load(build(17, 1, 25))
try:
    session.run(None, {"x": x})
except Exception as error:
    print("opset 17, Gemm for 5 x 5, running:", str(error)[-62:])
else:
    raise SystemExit("a Gemm for 5 x 5 runs now")
print("still so")
PYTHON

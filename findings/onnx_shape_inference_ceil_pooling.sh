#!/usr/bin/env bash
# Expected: for one file there is one answer to how large the result of a pooling with ceil_mode is.
# Happens: where the last window would lie in the padding altogether, PyTorch and onnxruntime leave it out (7 pixels,
#   kernel 2, stride 2, padding 1: 4), onnx's shape inference counts it below opset 22 (5), and OpenVINO makes it: 5 x 5
#   numbers, the last row and column of which onnxruntime does not have. From opset 22 on onnx says 4 as well, OpenVINO 5.
# Seen with: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1.
# Why it matters: a file with inferred shapes stored in it contradicts the run, tools that believe these shapes see a
#   classifier that does not fit its input, and a network checked in one runtime fails in the other. The checker, even
#   with full_check, is content with 5 as declared output, and onnxruntime then gives 4 with a warning at most.
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
from onnx import TensorProto, helper, shape_inference

ort.set_default_logger_severity(4)
print("onnx", onnx.__version__, "onnxruntime", ort.__version__, "openvino", ov.__version__)
x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7) + 1


def sizes(opset, padding, declared=None):
    graph = helper.make_graph(
        [
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[padding] * 4, ceil_mode=1
            )
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, declared or [1, 1, None, None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    inferred = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    ran = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    onnx.save(model, "pool.onnx")
    other = ov.Core().compile_model("pool.onnx", "CPU")(x)[0]
    found = tuple(int(s) for s in (inferred[-1].dim_value, ran.shape[-1], other.shape[-1]))
    print(f"opset {opset}, padding {padding}: inferred {found[0]}, onnxruntime {found[1]}, openvino {found[2]}")
    return found


assert sizes(17, 0) == (4, 4, 4)
assert sizes(17, 1) == (5, 4, 5), "they have come closer at opset 17"
assert sizes(22, 1) == (4, 4, 5), "they have come closer at opset 22"
assert sizes(17, 1, [1, 1, 5, 5])[1] == 4, "a declared size of 5 has an effect now"
print("still so")
PYTHON

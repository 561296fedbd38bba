#!/usr/bin/env bash
# Expected: converting a file to another opset keeps its model-local functions, inlines them, or refuses the file.
# Happens: the functions are dropped, the nodes that call them stay. The checker is content with the result (it does
#   not look at operators of unknown domains), onnxruntime cannot load it. Metadata of nodes and of the graph go as
#   well.
# Seen with: onnx 1.23.2, onnxruntime 1.32.0.
# Why it matters: onnxscript and exporters built on it write blocks of a network as functions. A converted file that
#   passed the checker may be empty words. onnx.inliner.inline_local_functions() beforehand cures it.
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
from onnx import TensorProto, helper, inliner, version_converter

ort.set_default_logger_severity(4)
print("onnx", onnx.__version__, "onnxruntime", ort.__version__)
relu = helper.make_node("Relu", ["a"], ["b"])
block = helper.make_function("my", "Block", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)])
call = helper.make_node("Block", ["x"], ["y"], domain="my")
call.metadata_props.add(key="layer", value="backbone.0")
graph = helper.make_graph(
    [call],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
model = helper.make_model(graph, opset_imports=opsets, functions=[block], ir_version=10)
onnx.checker.check_model(model, full_check=True)
feeds = {"x": np.float32([[-1, 0, 1, 2]])}


def run(proto):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


print("before:", run(model))
converted = version_converter.convert_version(model, 18)
onnx.checker.check_model(converted, full_check=True)
print("after: nodes", [n.op_type for n in converted.graph.node], "functions", len(converted.functions))
print("metadata of the node:", list(converted.graph.node[0].metadata_props), "- the checker is content")
assert not converted.functions and converted.graph.node[0].op_type == "Block", "functions are kept or inlined now"
assert not converted.graph.node[0].metadata_props, "metadata of nodes are kept now"
try:
    run(converted)
except Exception as error:
    print("onnxruntime:", str(error)[:120])
else:
    raise SystemExit("the converted file runs now")
assert np.array_equal(run(version_converter.convert_version(inliner.inline_local_functions(model), 18)), run(model))
print("still so")
PYTHON

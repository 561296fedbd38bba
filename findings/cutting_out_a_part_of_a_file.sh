#!/usr/bin/env bash
# Expected: onnx.utils.extract_model takes out the part of a network between given tensors (a backbone, the part in
#   front of a detector's decoding), with everything that part needs and with the file's metadata.
#   onnx-graphsurgeon's import and export give back what they were given.
# Happens: extract_model follows the inputs of nodes, not what the branches of an If read from around them: what only
#   a branch uses is left out, and the call ends with "Nodes in a graph must be topologically sorted", which the
#   given file was. The file's metadata are gone from its results, and from what onnx-graphsurgeon exports.
# Seen with: onnx 1.23.2, onnx-graphsurgeon 0.6.1.
# Why it matters: class names, strides and preprocessing of detectors live in the metadata; whoever loads the part
#   finds none. And a network with one If cannot be split, although nothing about it is wrong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnx-graphsurgeon==0.6.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper, utils

print("onnx", onnx.__version__, "onnx-graphsurgeon", version("onnx-graphsurgeon"))
shape = [1, 3, 8, 8]


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def branch(kind):
    return helper.make_graph([helper.make_node(kind, ["a"], [kind])], kind, [], [value(kind)])


def build(middle):
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["x"], ["a"]),
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["bright"]),
            middle,
            helper.make_node("Neg", ["b"], ["y"]),
        ],
        "net",
        [value("x")],
        [value("y")],
        [numpy_helper.from_array(np.float32(0.5), "limit")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="names", value="cat,dog")
    onnx.checker.check_model(model, full_check=True)
    return model


def extract(model):
    onnx.save(model, "whole.onnx")
    utils.extract_model("whole.onnx", "part.onnx", ["x"], ["b"])
    part = onnx.load("part.onnx")
    print("part:", [n.op_type for n in part.graph.node], "metadata:", list(part.metadata_props))
    return part


plain = build(helper.make_node("Relu", ["a"], ["b"]))
part = extract(plain)
assert [n.op_type for n in part.graph.node] == ["Abs", "Relu"]
assert not part.metadata_props, "extract_model keeps metadata now"
surgeon = gs.export_onnx(gs.import_onnx(plain))
print("onnx-graphsurgeon:", [n.op_type for n in surgeon.graph.node], "metadata:", list(surgeon.metadata_props))
assert not surgeon.metadata_props, "onnx-graphsurgeon keeps metadata now"

chosen = helper.make_node("If", ["bright"], ["b"], then_branch=branch("Relu"), else_branch=branch("Sigmoid"))
try:
    extract(build(chosen))
except onnx.checker.ValidationError as error:
    print("with an If:", " ".join(str(error).split())[:110])
    assert "topologically sorted" in str(error)
else:
    raise SystemExit("a network with an If can be cut out now")
print("still so")
PYTHON

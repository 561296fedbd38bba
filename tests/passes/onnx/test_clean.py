"""Clean-up passes, each for itself."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from builder import FLOAT, Builder, difference, image, run
from slimmed import two_layers

from graphprune.passes.onnx.clean import FoldLiteralsPass, UnlistLiteralsPass


@pytest.mark.parametrize(("version", "modified"), [(3, True), (4, False), (8, False)])
def test_literals_of_old_files_are_no_inputs_any_more(version, modified):
    model = two_layers(Builder(9))
    model.ir_version = version
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    loaded = ir.from_proto(model)
    assert UnlistLiteralsPass()(loaded).modified == modified
    assert not UnlistLiteralsPass()(loaded).modified
    assert [value.name for value in loaded.graph.inputs] == (["x"] if modified else [v.name for v in model.graph.input])
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after, full_check=True)
    assert difference(run(model, {"x": image(2, 3, 8, 8)}), run(after, {"x": image(2, 3, 8, 8)})) == 0


FOLDED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n,4] x) => (float[n,2] y, float[2] out)
<float[2,4] v = {1, 2, 3, 4, 5, 6, 7, 8}, float[1] g = {2}, float[1] one = {1}, int64[2] wide = {64, 64}> {
    scaled = Mul (v, g)
    w = Transpose <perm = [1, 0]> (scaled)
    h = MatMul (x, w)
    big = Expand (one, wide)
    sum = ReduceSum <keepdims = 0> (big)
    noise = RandomNormalLike (g)
    a = Mul (h, sum)
    zero = Sub (noise, noise)
    y = Add (a, zero)
    out = ReduceSum <keepdims = 0> (v, axis)
}"""


def test_what_depends_on_literals_alone_is_computed_ahead():
    model = onnx.parser.parse_model(FOLDED)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    loaded = ir.from_proto(model)
    assert FoldLiteralsPass()(loaded).modified
    assert not FoldLiteralsPass()(loaded).modified
    # Neither what grows, nor what is random, nor an output of the graph.
    kinds = [node.op_type for node in loaded.graph]
    assert kinds == ["MatMul", "Expand", "ReduceSum", "RandomNormalLike", "Mul", "Sub", "Add", "ReduceSum"]
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after, full_check=True)
    x = {"x": image(3, 4)}
    assert difference(run(model, x), run(after, x)) == 0

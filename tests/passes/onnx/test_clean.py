"""Clean-up passes, each for itself."""

import onnx
import onnx_ir as ir
import pytest
from builder import FLOAT, Builder, difference, image, run
from slimmed import two_layers

from graphprune.passes.onnx.clean import UnlistLiteralsPass


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

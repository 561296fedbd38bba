"""Reading files: local functions in the opset of the model, or in another."""

import onnx
import onnx.parser
import pytest
from builder import difference, image, run

from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.model import load_model

TEXT = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[n,4] x) => (float[n,4] y) {{ y = local.block(x) }}
<domain: "local", opset_import: ["" : {opset}]>
block (a) => (c) {{ b = Softplus(a) c = {kind}(b) }}"""


def written(folder, opset, kind):
    model = onnx.parser.parse_model(TEXT.format(opset=opset, kind=kind))
    onnx.save(model, folder / "net.onnx")
    return model


@pytest.mark.parametrize(("opset", "kind"), [(17, "LeakyRelu"), (16, "LeakyRelu"), (13, "Tanh"), (14, "Relu")])
def test_a_function_in_another_opset_is_read_where_its_operators_are_the_same(tmp_path, opset, kind):
    model, feeds = written(tmp_path, opset, kind), {"x": image(2, 4)}
    loaded = load_model(tmp_path / "net.onnx")
    assert (len(loaded.functions), [node.op_type for node in loaded.graph]) == (0, ["Softplus", kind])
    assert difference(run(model, feeds), run(loaded, feeds)) == 0


def test_a_function_in_another_opset_is_refused_where_they_are_not(tmp_path):
    written(tmp_path, 13, "LeakyRelu")
    said = r"'local.block' is written in opset 13, the model in 17, and LeakyRelu is not the same in both"
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        load_model(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)

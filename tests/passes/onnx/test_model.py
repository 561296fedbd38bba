"""Reading files, and what free sizes stand for during the analysis."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, shapes
from slimmed import kill, two_layers

from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import free_sizes, load_model
from graphprune.passes.onnx.slim import slim_model

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


def test_a_function_in_another_opset_is_converted_where_they_are_not(tmp_path):
    """In opset 12 axes are attributes and Softmax runs over all dimensions from its axis on."""
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    net (float[2,3,4] x) => (float[2,3,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}>
    { a = Relu(x) y = local.block(a, w) }
    <domain: "local", opset_import: ["" : 12]>
    block (a, w) => (y) { b = MatMul(a, w) c = Softmax<axis = 1>(b) d = ReduceSum<axes = [1], keepdims = 0>(c)
                          e = Unsqueeze<axes = [1]>(d) y = Mul(c, e) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    x = image(2, 3, 4)
    loaded = load_model(tmp_path / "net.onnx")
    assert not loaded.functions
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    product = np.maximum(x, 0) @ np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2], np.float32).reshape(4, 4)
    shares = np.exp(product - product.max(axis=(1, 2), keepdims=True))
    shares /= shares.sum(axis=(1, 2), keepdims=True)
    assert difference([shares * shares.sum(axis=1, keepdims=True)], run(loaded, {"x": x})) < 1e-6


def test_a_function_in_another_opset_that_cannot_be_converted_is_refused(tmp_path):
    written(tmp_path, 20, "Gelu")
    said = r"'local.block' is written in opset 20, the model in 17, and Gelu is not the same in both"
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        load_model(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


def test_a_stated_batch_is_that_of_the_analysis():
    """Frames beside one another in the batch, which hide in it how many there are."""
    b = Builder()
    frames = b.literal(np.array([-1, 4, 8, 8, 8]))
    one, two = b.literal(np.array([1])), b.literal(np.array([9]))

    def shifted(x):
        x = b.call("Reshape", x, frames)
        return b.call("Reshape", b.call("Slice", b.call("Concat", x, x, axis=1), one, two, one), still)

    still = b.literal(np.array([-1, 8, 8, 8]))
    model = two_layers(b, between=shifted)
    kill(model, "first", [1])
    result = ir.from_proto(model)
    sizes = free_sizes(result, {"": (4, 3, 8, 8)})
    assert sizes == {"n": 4}
    slim_model(result, sizes=sizes)
    assert shapes(result)["first.weight"] == (7, 3, 3, 3)
    feeds = {"x": image(8, 3, 8, 8)}
    assert difference(run(model, feeds), run(result, feeds)) < 1e-5


@pytest.mark.parametrize(("shape", "batch"), [((), 2), ((0, 3, 8, 8), 2), ((1, 3, 8, 8), 2), ((4, 3, 8, 8), 4)])
def test_costs_are_those_of_one_sample_whatever_the_batch(shape, batch):
    model = ir.from_proto(two_layers(Builder()))
    graph = trace_onnx(model, sizes=free_sizes(model, {"": shape}))
    assert graph.front_end.env[model.graph.inputs[0]].shape == (batch, 3, 8, 8)
    assert graph.cost.macs(graph.all_kept()) == 64 * 9 * (3 * 8 + 8 * 4)

"""Reading files, and what free sizes stand for during the analysis."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from builder import Builder, difference, image, run, shapes
from slimmed import kill, two_layers

from graphprune.passes.errors import ModelLoadError, UnsupportedModelError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import evaluate, free_sizes, load_model
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


@pytest.mark.parametrize(
    ("opset", "kind", "options"),
    [
        *((opset, kind, {"axis": 1}) for kind in ("Softmax", "LogSoftmax", "Hardmax") for opset in (11, 13)),
        *((opset, "LRN", {"size": 3, "alpha": 0.5}) for opset in (11, 17)),
        (13, "AveragePool", {"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1}),
        (13, "AveragePool", {"kernel_shape": [3, 3], "strides": [3, 3]}),
    ],
)
def test_numbers_that_are_computed_ahead_are_those_of_the_runtime(opset, kind, options):
    """Or none are."""
    b = Builder(opset)
    b.output(b.call(kind, b.input((2, 3, 7, 7)), **options))
    model, numbers = b.model(ir_version=6), image(2, 3, 7, 7)
    found = evaluate(ir.from_proto(model).graph[0], [numbers], {"": opset})
    assert (found is None) == (kind == "LRN" or "ceil_mode" in options or (kind, opset) == ("Hardmax", 11))
    assert found is None or difference(run(model, {"x": numbers}), found) < 1e-5


@pytest.mark.parametrize("scale", [1.5, 0.6])
def test_positions_that_are_computed_ahead_are_those_of_the_opset(scale):
    b = Builder(10)
    scales = np.array([1, 1, scale, scale], np.float32)
    b.output(b.call("Resize", b.input((1, 3, 7, 7)), b.literal(scales), mode="linear"), (1, 3, "h", "w"))
    model, numbers = b.model(ir_version=6), image(1, 3, 7, 7)
    found = evaluate(ir.from_proto(model).graph[0], [numbers, scales], {"": 10})
    assert found is not None
    assert difference(run(model, {"x": numbers}), found) < 1e-5


def test_nodes_in_another_order_are_sorted(tmp_path):
    """What a body reads from around it counts as read by its node."""
    b = Builder(17)
    x = b.input((1, 4))
    low, y = b.call("Neg", x), b.fresh("y")
    given = onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [1, 4])
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", [low], ["inner"])], "body", [], [given])
    b.nodes.append(onnx.helper.make_node("If", [b.literal(np.array(True))], [y], then_branch=body, else_branch=body))
    b.output(b.call("Exp", y), (1, 4))
    model = b.model()
    del model.graph.node[:]
    model.graph.node.extend(reversed(b.nodes))
    onnx.save(model, tmp_path / "net.onnx")
    loaded = load_model(tmp_path / "net.onnx")
    assert [node.op_type for node in loaded.graph] == ["Neg", "If", "Exp"]
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    assert difference(run(model, {"x": image(1, 4)}), run(loaded, {"x": image(1, 4)})) == 0


def test_nodes_in_a_circle_are_refused(tmp_path):
    b = Builder(17)
    b.nodes += [onnx.helper.make_node("Neg", ["b"], ["a"]), onnx.helper.make_node("Neg", ["a"], ["b"])]
    b.output("a", (1, 4))
    onnx.save(b.model(), tmp_path / "net.onnx")
    with pytest.raises(ModelLoadError, match="not a valid ONNX model") as caught:
        load_model(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)

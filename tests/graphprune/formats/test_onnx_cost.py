import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import ModelLoadError
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.runtime.onnx_session import open_session


def weight(name, *shape):
    return numpy_helper.from_array(np.ones(shape, dtype=np.float32), name)


def net(nodes, weights, inputs, outputs):
    """Serialize a graph; inputs and outputs are (name, shape)."""
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in part] for part in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *infos, weights)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString()


def single(op, weights, inputs, output_rank, **attributes):
    names = [name for name, _ in inputs] + [w.name for w in weights]
    shape = [f"d{i}" for i in range(output_rank)]
    return net([helper.make_node(op, names, ["y"], **attributes)], weights, inputs, [("y", shape)])


@pytest.mark.parametrize(
    ("model", "macs", "params"),
    [
        # 8 output maps of 16x16, each element 3 channels of 3x3.
        (
            single("Conv", [weight("w", 8, 3, 3, 3), weight("b", 8)], [("x", ["n", 3, 16, 16])], 4, pads=[1, 1, 1, 1]),
            8 * 16 * 16 * 3 * 9,
            8 * 27 + 8,
        ),
        # Grouped, strided, no padding: 7x7 maps, 2 channels per group.
        (
            single("Conv", [weight("w", 8, 2, 3, 3)], [("x", ["n", 4, 16, 16])], 4, group=2, strides=[2, 2]),
            8 * 7 * 7 * 2 * 9,
            8 * 18,
        ),
        # Depthwise.
        (
            single("Conv", [weight("w", 6, 1, 3, 3)], [("x", ["n", 6, 8, 8])], 4, group=6, pads=[1, 1, 1, 1]),
            6 * 64 * 9,
            54,
        ),
        # Every input element meets the kernel of each of the 5 output channels.
        (
            single("ConvTranspose", [weight("w", 3, 5, 2, 2)], [("x", ["n", 3, 8, 8])], 4, strides=[2, 2]),
            3 * 64 * 5 * 4,
            60,
        ),
        (single("Gemm", [weight("w", 10, 32)], [("x", ["n", 32])], 2, transB=1), 320, 320),
        # Batched product of two activations.
        (single("MatMul", [], [("a", ["n", 2, 5, 7]), ("b", ["n", 2, 7, 3])], 4), 2 * 5 * 7 * 3, 0),
    ],
)
def test_formulas(model, macs, params):
    cost = onnx_cost(model)
    assert cost.macs == macs
    assert cost.params == params
    assert cost.size_bytes == len(model)
    assert cost.uncounted == ()


@pytest.mark.parametrize(("source", "macs"), [("Identity", 4 * 8), ("RandomNormalLike", 4 * 8 + 8 * 3 * 4)])
def test_a_product_of_weights_is_computed_once(source, macs):
    nodes = [
        helper.make_node(source, ["a"], ["left"]),
        helper.make_node("MatMul", ["left", "b"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = net(nodes, [weight("a", 8, 3), weight("b", 3, 4)], [("x", ["n", 8])], [("y", ["n", 4])])
    assert onnx_cost(model).macs == macs


def test_a_transposed_first_factor_is_contracted_along_its_rows():
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Gemm", ["t", "w"], ["y"], transA=1)]
    assert onnx_cost(net(nodes, [weight("w", 32, 10)], [("x", ["n", 32])], [("y", ["n", 10])])).macs == 320


def test_a_fixed_batch_is_divided_out():
    sizes = [
        onnx_cost(single("Conv", [weight("w", 8, 3, 3, 3)], [("x", [batch, 3, 16, 16])], 4)).macs
        for batch in ("n", 1, 8)
    ]
    assert len(set(sizes)) == 1


def test_stated_shapes_in_terms_of_the_batch_do_not_confuse():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[batch,4,6,6] x) => (float[N,36] y) <float[4,4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>
    { s = Constant<value = int64[3] {-1,6,6}>() r = Reshape(x, s) t = Constant<value = int64[3] {-1,36,4}>()
      q = Reshape(r, t) p = MatMul(q, w) u = Constant<value = int64[2] {-1,36}>() y = Reshape(p, u) }"""
    model = onnx.parser.parse_model(text)
    info = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["4*batch", 6, 6])
    model.graph.value_info.append(info)
    assert onnx_cost(model.SerializeToString()).macs == 36 * 4 * 4


def test_only_weights_count_as_parameters():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("Conv", ["x", "w"], ["e"], strides=[2, 2]),
        helper.make_node("Constant", [], ["k"], value=weight("", 5, 20)),
        helper.make_node("MatMul", ["d", "k"], ["y"]),
    ]
    scalars = [numpy_helper.from_array(np.float32(v), n) for v, n in ((0, "low"), (6, "high"), (0.5, "half"))]
    shape = numpy_helper.from_array(np.array([-1, 5]), "shape")
    unused = weight("unused", 100)
    stored = [weight("w", 5, 3, 1, 1), *scalars, shape, unused]
    model = net(nodes, stored, [("x", ["n", 3, 4, 4])], [("y", ["m", 20]), ("e", ["n", 5, 2, 2])])
    cost = onnx_cost(model)
    assert cost.params == 15 + 100
    assert cost.macs == (16 + 4) * 15 + 16 * 5 * 20


def test_quantized_weights_count_their_scales_do_not():
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"], axis=0),
        helper.make_node("Conv", ["x", "f"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "w"),
        weight("scale", 4),
        numpy_helper.from_array(np.zeros(4, np.int8), "zero"),
    ]
    cost = onnx_cost(net(nodes, stored, [("x", ["n", 3, 2, 2])], [("y", ["n", 4, 2, 2])]))
    assert (cost.params, cost.macs) == (12, 4 * 4 * 3)


# Inference cannot know the shape of r: it is computed from the values of x.
COMPUTED_SHAPE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n,6] x, int64[2] to) => (float[a,b] y) <float[3,2] w = {1,1,1,1,1,1}>
{ r = Reshape(x, to) y = MatMul(r, w) }"""


def test_shapes_that_inference_misses_are_measured():
    text = COMPUTED_SHAPE.replace("int64[2] to", "float[n,2] unused").replace(
        "r = Reshape(x, to)",
        "o = Mul(x, z) f = ReduceMax(o) t = Add(three, f) i = Cast<to = 7>(t) s = Concat<axis = 0>(m, i) "
        "r = Reshape(x, s)",
    )
    text = text.replace("1,1}>", "1,1}, float z = {0}, float[1] three = {3}, int64[1] m = {-1}>")
    text = text.replace("ReduceMax(o)", "ReduceMax<keepdims = 0>(o)")
    cost = onnx_cost(onnx.parser.parse_model(text).SerializeToString())
    assert cost.macs == 2 * 3 * 2
    assert cost.uncounted == ()


def test_what_cannot_be_counted_is_said():
    # Random integers as a shape make onnxruntime fail.
    cost = onnx_cost(onnx.parser.parse_model(COMPUTED_SHAPE).SerializeToString())
    assert cost.macs == 0
    assert len(cost.uncounted) == 1
    assert "MatMul 'y': the shape of 'y' is unknown (" in cost.uncounted[0]


def test_an_operator_without_a_formula_is_said():
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    bound = numpy_helper.from_array(np.bool_(True), "c")
    cost = onnx_cost(net([node], [bound], [("x", ["n", 4])], [("y", ["n", 4])]))
    assert cost.uncounted == ("If 'y': no formula for this operator",)
    assert json.loads(json.dumps(cost.to_dict()))["uncounted"] == list(cost.uncounted)


RELU = {"activation": "Relu"}


def microsoft(op, weights, inputs, rank, **attributes):
    return single(op, weights, inputs, rank, domain="com.microsoft", **attributes)


@pytest.mark.parametrize(
    ("model", "macs", "params"),
    [
        (microsoft("FusedMatMul", [weight("w", 8, 4)], [("x", ["n", 8])], 2), 32, 32),
        (microsoft("FusedMatMul", [weight("w", 4, 8)], [("x", ["n", 2, 8])], 3, transB=1, alpha=0.5), 64, 32),
        (microsoft("FusedMatMul", [weight("w", 2, 8)], [("x", ["n", 2, 3])], 3, transA=1), 3 * 2 * 8, 16),
        (microsoft("FusedGemm", [weight("w", 4, 8), weight("b", 4)], [("x", ["n", 8])], 2, transB=1, **RELU), 32, 36),
        (microsoft("FusedConv", [weight("w", 8, 2, 3, 3)], [("x", ["n", 4, 5, 5])], 4, group=2), 8 * 9 * 2 * 9, 144),
        (microsoft("QuickGelu", [], [("x", ["n", 8])], 2), 0, 0),
    ],
)
def test_operators_that_onnxruntime_fused_count_as_those_they_were_made_of(model, macs, params):
    cost = onnx_cost(model)
    assert (cost.macs, cost.params, cost.uncounted) == (macs, params, ())


@pytest.mark.parametrize("shape", [["n", 8, 6, 6], [1, 16, 9, 9]])
def test_a_file_that_onnxruntime_optimized_costs_what_it_did(tmp_path, shape):
    layers = [weight("v", 16, shape[1], 1, 1), weight("w", 32, 16, 3, 3)]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    model = net(nodes, layers, [("x", shape)], [("y", ["n", 32, "h", "w"])])
    open_session(model, optimized=str(tmp_path / "fast.onnx"))
    before, after = onnx_cost(model), onnx_cost(tmp_path / "fast.onnx")
    assert (before.macs, before.uncounted) == (after.macs, after.uncounted)


@pytest.mark.parametrize(
    ("domain", "op"),
    [("com.microsoft", "PackedAttention"), ("", "OfTheFuture"), ("my.domain", "Conv"), ("my.domain", "Gelu")],
)
def test_operators_that_nobody_knows_are_named(domain, op):
    node = helper.make_node(op, ["x", "w"], ["y"], domain=domain)
    cost = onnx_cost(net([node], [weight("w", 4, 3, 1, 1)], [("x", ["n", 3, 8, 8])], [("y", ["n", 4, 8, 8])]))
    assert (cost.macs, cost.params) == (0, 12)
    assert cost.uncounted == (f"{domain}.{op} 'y': no formula for this operator".lstrip("."),)


def test_weights_of_integer_operators_count_their_scales_do_not():
    names = ["x", "a", "z", "w", "s", "u", "a", "z", "b"]
    stored = [
        numpy_helper.from_array(np.ones(n, k), m) for m, k, n in (("w", np.int8, (4, 3, 1, 1)), ("u", np.int8, 4))
    ]
    stored += [numpy_helper.from_array(np.ones(4, np.int32), "b"), numpy_helper.from_array(np.uint8(0), "z")]
    stored += [weight("s", 4), numpy_helper.from_array(np.float32(1), "a")]
    model = net(
        [helper.make_node("QLinearConv", names, ["y"])], stored, [("x", ["n", 3, 2, 2])], [("y", ["n", 4, 2, 2])]
    )
    proto = onnx.load_model_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    assert (onnx_cost(proto.SerializeToString()).macs, onnx_cost(proto.SerializeToString()).params) == (48, 16)


def test_weights_inside_control_flow_count():
    def body(own):
        out = helper.make_tensor_value_info(f"{own}_out", TensorProto.FLOAT, None)
        nodes = [helper.make_node("MatMul", ["x", own], ["h"]), helper.make_node("MatMul", ["h", "shared"], [out.name])]
        return helper.make_graph(nodes, own, [], [out], [weight(own, 4, 5), *([weight("h2", 9)] if own == "v" else [])])

    node = helper.make_node("If", ["c"], ["y"], then_branch=body("v"), else_branch=body("w"))
    proto = onnx.load_model_from_string(
        net([node], [weight("shared", 5, 4)], [("x", ["n", 4]), ("c", [])], [("y", ["n", 4])])
    )
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    cost = onnx_cost(proto.SerializeToString())
    assert (cost.params, cost.uncounted) == (20 + 20 + 20, ("If 'y': no formula for this operator",))


@pytest.mark.parametrize(
    ("table", "image", "samples"),
    [
        ([7, 16], ["n", 3, 8, 8], 1),
        ([7, 16], [2, 3, 8, 8], 2),  # no batch is told: all of the run
        ([2, 16], [2, 3, 8, 8], 1),
        ([], [2, 3, 8, 8], 1),
        (["n", 16], ["n", 3, 8, 8], 1),
    ],
)
def test_the_batch_is_what_the_inputs_have_in_common(table, image, samples):
    nodes = [helper.make_node("Conv", ["image", "w"], ["y"]), helper.make_node("Relu", ["table"], ["z"])]
    inputs, outputs = [("table", table), ("image", image)], [("y", ["b", 4, 6, 6]), ("z", table)]
    assert onnx_cost(net(nodes, [weight("w", 4, 3, 3, 3)], inputs, outputs)).macs == samples * 4 * 36 * 27


def test_open_sizes_come_from_the_user():
    model = single("Conv", [weight("w", 8, 3, 3, 3)], [("x", ["n", 3, "h", "w"])], 4)
    assert "its shape must be given" in onnx_cost(model).uncounted[0]
    assert onnx_cost(model, shapes={"": (1, 3, 10, 10)}).macs == 8 * 64 * 27
    assert onnx_cost(model, shapes={"x": (2, 3, 10, 10)}).macs == 8 * 64 * 27
    assert onnx_cost(model, shapes={"x": (0, 3, 10, 10)}).macs == 8 * 64 * 27


def test_local_functions_are_looked_into():
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    net (float[n,4] x) => (float[n,4] y) <float[4,4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> { y = local.layer(x, w) }
    <domain: "local", opset_import: ["" : 17]>
    layer (a, b) => (c) { c = MatMul(a, b) }"""
    assert onnx_cost(onnx.parser.parse_model(text).SerializeToString()).macs == 16


def recurrent(kind, gates, directions=1, **attributes):
    """Seven steps of three numbers through five units; the steps come first, unless there is a layout of its own."""
    way = {"direction": "bidirectional"} if directions == 2 else {}
    weights = [weight("w", directions, gates * 5, 3), weight("r", directions, gates * 5, 5)]
    nodes = [] if "layout" in attributes else [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])]
    read = nodes[0].output[0] if nodes else "x"
    nodes.append(helper.make_node(kind, [read, "w", "r"], ["y"], hidden_size=5, **way, **attributes))
    return net(nodes, weights, [("x", ["n", 7, 3])], [("y", [*"abcd"])])


#: Attention of 2 heads, 4 numbers each, 6 queries on 6 keys: 2 * 6 * 6 * (4 + 4), where the values have 4.
ATTENTION = 2 * 6 * 6 * (4 + 4)


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (recurrent("LSTM", 4), 7 * 20 * (3 + 5)),
        (recurrent("GRU", 3), 7 * 15 * (3 + 5)),
        (recurrent("RNN", 1), 7 * 5 * (3 + 5)),
        (recurrent("LSTM", 4, directions=2), 2 * 7 * 20 * (3 + 5)),
        (recurrent("LSTM", 4, layout=1), 7 * 20 * (3 + 5)),
        (single("Einsum", [weight("w", 4, 2)], [("x", ["n", 6, 4])], 3, equation="bij,jk->bik"), 6 * 4 * 2),
        (single("Einsum", [], [("x", ["n", 6, 4])], 2, equation="bij->bi"), 0),
        (single("Einsum", [], [("x", ["n", 6, 6]), ("z", ["n", 6])], 1, equation="bii,bi->b"), 6),
        (single("Einsum", [weight("w", 2, 4)], [("x", ["n", 6, 4])], 3, equation="...j,kj->...k"), 6 * 4 * 2),
        (microsoft("Attention", [weight("w", 8, 24), weight("b", 24)], [("x", ["n", 6, 8])], 3, num_heads=2),
         6 * 8 * 24 + ATTENTION),
        (microsoft("MultiHeadAttention", [], [(name, ["n", 6, 8]) for name in "qkv"], 3, num_heads=2), ATTENTION),
        (microsoft("MultiHeadAttention", [], [("qkv", ["n", 6, 2, 3, 4])], 3, num_heads=2), ATTENTION),
        (microsoft("MultiHeadAttention", [], [("q", ["n", 6, 8]), ("kv", ["n", 9, 2, 2, 4])], 3, num_heads=2),
         2 * 6 * 9 * (4 + 4)),
    ],
)  # fmt: skip
def test_recurrent_layers_attention_and_sums_by_letters_count(model, macs):
    cost = onnx_cost(model)
    assert (cost.macs, cost.uncounted) == (macs, ())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("past", [0, 5])
def test_attention_of_the_standard_counts(packed, past):
    """4 heads of queries on 2 of keys and values: 6 positions on 9, and those before."""
    sizes = {"q": (4, 6, 3), "k": (2, 9, 3), "v": (2, 9, 5)}
    inputs = [(n, ["b", s[1], s[0] * s[2]] if packed else ["b", *s]) for n, s in sizes.items()]
    names = list("qkv")
    if past:
        names += ["", "pk", "pv"]
        inputs += [("pk", ["b", 2, past, 3]), ("pv", ["b", 2, past, 5])]
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if packed else {}
    outputs = ["y", "k_all", "v_all"] if past else ["y"]
    model = net([helper.make_node("Attention", names, outputs, **heads)], [], inputs, [("y", ["b", *"hld"[packed:]])])
    proto = onnx.load_model_from_string(model)
    proto.opset_import[0].version = 23
    assert onnx_cost(proto.SerializeToString()).macs == 4 * 6 * (9 + past) * (3 + 5)


def test_stated_sizes_that_are_stale_are_not_believed():
    """As a tool leaves them that has changed the size of the input."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["y"])]
    model = onnx.load_model_from_string(
        net(nodes, [weight("w", 8, 3, 3, 3), weight("v", 4, 8, 1, 1)], [("x", [1, 3, 34, 34])], [("y", [1, 4, 6, 6])])
    )
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 8, 6, 6]))
    cost = onnx_cost(model.SerializeToString())
    assert (cost.macs, cost.uncounted) == (32 * 32 * (8 * 27 + 4 * 8), ())


def test_sizes_behind_operators_that_nobody_knows_are_those_that_the_file_states():
    nodes = [helper.make_node("Plugin", ["x"], ["a"], domain="my"), helper.make_node("Conv", ["a", "w"], ["y"])]
    model = onnx.load_model_from_string(
        net(nodes, [weight("w", 8, 3, 3, 3)], [("x", [1, 3, 9, 9])], [("y", [1, 8, 4, 4])])
    )
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3, 6, 6]))
    cost = onnx_cost(model.SerializeToString())
    assert (cost.macs, cost.uncounted) == (16 * 8 * 27, ("my.Plugin 'a': no formula for this operator",))


def test_behind_operators_that_onnx_does_not_define_sizes_are_inferred():
    """Though nothing can be run: there is a plugin at the end."""
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["a"], domain="com.microsoft", activation="Relu"),
        helper.make_node("Conv", ["a", "v"], ["b"]),
        helper.make_node("Plugin", ["b"], ["y"], domain="my"),
    ]
    weights = [weight("w", 8, 3, 3, 3), weight("v", 4, 8, 1, 1)]
    cost = onnx_cost(net(nodes, weights, [("x", ["n", 3, 6, 6])], [("y", ["n", 4])]))
    assert cost.macs == 16 * (8 * 27 + 4 * 8)
    assert cost.uncounted == ("my.Plugin 'y': no formula for this operator",)


def test_layers_that_compute_the_same_count_once():
    """As a classifier behind several dropouts, which runtimes merge; not the same layer on other numbers."""
    nodes = [
        helper.make_node("Dropout", ["x"], ["a"]),
        helper.make_node("Identity", ["x"], ["b"]),
        *(helper.make_node("Gemm", [name, "w"], [f"{name}1"], name=name) for name in "ab"),
        *(helper.make_node("Gemm", [f"{name}1", "v"], [f"{name}2"]) for name in "ab"),
        helper.make_node("Relu", ["a2"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["d"]),
        helper.make_node("Sum", ["a2", "b2", "d"], ["y"]),
    ]
    model = net(nodes, [weight("w", 3, 5), weight("v", 5, 5)], [("x", ["n", 3])], [("y", ["n", 5])])
    assert onnx_cost(model).macs == 15 + 25 + 25


@pytest.mark.parametrize(("opset", "axes"), [(12, "<axes = [1], keepdims = 1>(d)"), (17, "<axes = [1]>(d)")])
def test_functions_in_another_opset_are_looked_into(opset, axes):
    text = f"""<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    net (float[n,2] x) => (float[n,2] y) <float[2,2] w = {{1,1,1,1}}> {{ y = local.layer(x, w) }}
    <domain: "local", opset_import: ["" : {opset}]>
    layer (a, b) => (c) {{ d = MatMul(a, b) e = ReduceMean{axes} f = Mul(d, e) c = MatMul(f, b) }}"""
    cost = onnx_cost(onnx.parser.parse_model(text).SerializeToString())
    assert (cost.macs, cost.uncounted) == (8, ())


def test_an_open_batch_may_be_written_as_a_negative_size():
    model = onnx.load_model_from_string(single("Conv", [weight("w", 8, 3, 3, 3)], [("x", ["n", 3, 6, 6])], 4))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    cost = onnx_cost(model.SerializeToString())
    assert (cost.macs, cost.uncounted) == (16 * 8 * 27, ())


def test_small_numbers_in_another_file_are_read(tmp_path):
    """Sizes that shapes depend on, in a file that onnxruntime cannot run."""
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Plugin", ["b"], ["y"], domain="my"),
    ]
    sizes = numpy_helper.from_array(np.array([0, 4, 3]), "sizes")
    model = onnx.load_model_from_string(net(nodes, [sizes, weight("w", 3, 5)], [("x", ["n", 12])], [("y", ["n"])]))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert onnx_cost(tmp_path / "m.onnx").macs == 4 * 3 * 5


def test_external_data_belongs_to_the_size(tmp_path):
    model = onnx.load_model_from_string(single("Gemm", [weight("w", 32, 10)], [("x", ["n", 32])], 2))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    cost = onnx_cost(tmp_path / "m.onnx")
    assert cost.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert cost.size_bytes > 32 * 10 * 4
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelLoadError, match=r"m\.onnx"):
        onnx_cost(tmp_path / "m.onnx")

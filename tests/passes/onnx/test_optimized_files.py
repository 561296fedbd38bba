"""Files that onnxruntime wrote: optimized ones, and those quantized operator by operator, are cut like the original."""

import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from builder import Builder, difference, image, run, shapes, zero
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from graphprune.errors import UnsupportedModelError
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.cut import mask_groups, remove_groups
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.slim import slim_model

X = {"x": image(2, 3, 16, 16)}
LEVELS = ort.GraphOptimizationLevel


def mixed() -> onnx.ModelProto:
    """A residual block, gates, a concatenation, pools and two linear layers."""
    b = Builder(17)
    x = b.call("Relu", b.conv(b.input((2, 3, 16, 16)), 3, 8, name="stem"))
    x = b.call("Relu", b.call("Add", x, b.conv(b.call("Relu", b.conv(x, 8, 12, name="inner")), 12, 8, name="outer")))
    z = b.call("LeakyRelu", b.conv(b.call("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, 12, name="wide"))
    z = b.call("AveragePool", b.call("Mul", z, b.call("Sigmoid", z)), kernel_shape=[2, 2])
    z = b.call("Concat", z, b.call("Sigmoid", b.conv(z, 12, 8, 1, name="side")), axis=1)
    z = b.call("Flatten", b.call("GlobalAveragePool", b.conv(z, 20, 16, name="last")))
    z = b.call("Relu", b.call("Gemm", z, b.weight(12, 16, name="fc1"), b.vector(12, "fc1.bias"), transB=1))
    b.output(b.call("Gemm", z, b.weight(10, 12, name="fc2"), b.vector(10, "fc2.bias"), transB=1), (2, 10))
    return b.model()


class Images(CalibrationDataReader):
    def __init__(self):
        self.left = [X] * 2

    def get_next(self):
        return self.left.pop() if self.left else None


def optimized(path, level):
    target = path.with_name(f"{path.stem}.fast.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath = level, str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target


def quantized(path, how):
    logging.disable(logging.WARNING)
    target = path.with_name(f"{path.stem}.int8.onnx")
    options = {"quant_format": getattr(QuantFormat, how), "per_channel": True, "reduce_range": True}
    quantize_static(path, target, Images(), activation_type=QuantType.QUInt8, **options)
    logging.disable(logging.NOTSET)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """How a file was made -> the file."""
    folder = tmp_path_factory.mktemp("files")
    plain = folder / "net.onnx"
    onnx.save(mixed(), plain)
    found = {"plain": plain, "fused": optimized(plain, LEVELS.ORT_ENABLE_EXTENDED)}
    for how in ("QOperator", "QDQ"):
        onnx.save(mixed(), folder / f"{how}.onnx")
        found[how] = quantized(folder / f"{how}.onnx", how)
    found["fused QDQ"] = optimized(found["QDQ"], LEVELS.ORT_ENABLE_EXTENDED)
    found["channels last"] = optimized(found["QOperator"], LEVELS.ORT_ENABLE_ALL)
    return found


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        ("fused", {"FusedConv", "FusedGemm"}),
        ("QOperator", {"QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QGemm"}),
        ("QOperator", {"QLinearAveragePool", "QLinearGlobalAveragePool"}),
        ("fused QDQ", {"QLinearSigmoid", "QLinearLeakyRelu"}),
        ("channels last", {"NhwcMaxPool", "QLinearConv", "QLinearAdd"}),
    ],
)
def test_the_same_channels_go_as_from_the_original(files, how, kinds):
    assert kinds <= {node.op_type for node in onnx.load(files[how]).graph.node if node.domain}
    graph, original = trace_onnx(load_model(files[how])), trace_onnx(load_model(files["plain"]))
    assert graph.unknown == {}
    assert sorted(len(s.groups) for s in graph.sets) == sorted(len(s.groups) for s in original.sets)
    results = []
    for change in (mask_groups, remove_groups):
        graph = trace_onnx(load_model(files[how]))
        removed = ~graph.all_kept()
        for group_set in graph.sets:
            removed[group_set.groups[::2]] = True
        change(graph, removed)
        results.append(graph.front_end.model)
    assert sum(map(np.prod, shapes(results[1]).values())) < 0.5 * sum(map(np.prod, shapes(results[0]).values()))
    assert difference(run(results[0], X, optimize=True), run(results[1], X, optimize=True)) < 1e-5


def test_dead_channels_are_found_in_them(tmp_path):
    """The inner channels of a residual block, killed before the file was optimized, or quantized and optimized."""
    model = mixed()
    for name in ("inner.weight", "inner.bias"):
        zero(model, name, [1, 4, 7])
    onnx.save(model, tmp_path / "net.onnx")
    made = [optimized(tmp_path / "net.onnx", LEVELS.ORT_ENABLE_EXTENDED)]
    made += [quantized(tmp_path / "net.onnx", "QOperator")]
    made += [optimized(made[1], LEVELS.ORT_ENABLE_ALL)]
    for path in made:
        before, after = load_model(path), load_model(path)
        assert slim_model(after).removal.channels == 3, path.name
        assert difference(run(before, X, optimize=True), run(after, X, optimize=True)) < 1e-5


def test_weights_in_blocks_of_a_processor_are_refused(tmp_path):
    """Onnxruntime writes them on x86-64 alone, so the file is made by hand."""
    b = Builder(17)
    x = b.call("ReorderInput", b.input((1, 8, 4, 4)), domain="com.microsoft.nchwc")
    x = b.call("Conv", x, b.weight(8, 8, 1, 1), domain="com.microsoft.nchwc")
    b.output(b.call("ReorderOutput", x, domain="com.microsoft.nchwc", channels=8), (1, 8, 4, 4))
    message = r"optimized file \(com\.microsoft\.nchwc\.ReorderInput, .*Conv, .*ReorderOutput\).*: slim the original$"
    with pytest.raises(UnsupportedModelError, match=message):
        trace_onnx(ir.from_proto(b.model()))


def two(b, between, width=8, last=8):
    """Two linear layers with something between; channels 1 and 5 of the first are zero."""
    weight = np.asarray(b.rng.standard_normal((6, width)), np.float32)
    weight[:, [1, 5]] = 0
    x = b.call("MatMul", b.input((3, 6)), b.literal(weight, "first"))
    b.output(b.call("MatMul", between(x), b.weight(last, 4, name="second")), (3, 4))
    return b.model()


def shifted(size=8):
    array = np.linspace(0.5, 1, size, dtype=np.float32)
    array[[1, 5]] = 0
    return array


MS = "com.microsoft"
BETWEEN = {
    "BiasGelu": lambda b, x: b.call("BiasGelu", x, b.literal(shifted(), "extra"), domain=MS),
    "FastGelu": lambda b, x: b.call("FastGelu", x, b.literal(shifted(), "extra"), domain=MS),
    "FastGelu without": lambda b, x: b.call("FastGelu", x, domain=MS),
    "Gelu": lambda b, x: b.call("Gelu", x, domain=MS),
    "QuickGelu": lambda b, x: b.call("QuickGelu", x, domain=MS, alpha=1.7),
    "FusedMatMul": lambda b, x: b.call("FusedMatMul", x, wide(b), domain=MS, transB=1, alpha=0.5),
    "FusedGemm": lambda b, x: b.call("FusedGemm", x, wide(b), wide_bias(b), domain=MS, transB=1, activation="Relu"),
}


def wide(b):
    array = b.rng.standard_normal((8, 8)).astype(np.float32)
    array[[0, 3]] = 0
    return b.literal(array, "extra")


def wide_bias(b):
    array = np.full(8, 0.5, np.float32)
    array[[0, 3]] = 0
    return b.literal(array, "extra.bias")


@pytest.mark.parametrize("kind", BETWEEN)
def test_fused_operators_pass_zeros_on(kind):
    b = Builder(17)
    model = two(b, lambda x: BETWEEN[kind](b, x))
    result = ir.from_proto(model)
    assert slim_model(result).removal.groups == (4 if "Fused" in kind else 2)
    found, feeds = shapes(result), {"x": image(3, 6)}
    assert (found["first"], found["second"]) == ((6, 6), (6, 4))
    assert difference(run(model, feeds), run(result, feeds)) < 1e-5


@pytest.mark.parametrize(
    ("activation", "dead"),
    [({"activation": "Relu"}, 2), ({"activation": "Sigmoid"}, 0), ({"activation": "Tanh"}, 2)]
    + [
        ({"activation": "Clip", "activation_params": limits}, dead)
        for limits, dead in (([0.0, 6.0], 2), ([1.0, 6.0], 0))
    ],
)
def test_the_activation_of_a_fused_convolution_says_what_stays_zero(activation, dead):
    b = Builder(17)
    weight, bias = b.rng.standard_normal((8, 3, 1, 1)).astype(np.float32), shifted()
    weight[[1, 5]] = 0
    x = b.input((2, 3, 16, 16))
    x = b.call("FusedConv", x, b.literal(weight, "first"), b.literal(bias, "bias"), domain=MS, **activation)
    y = b.call("Relu", b.conv(x, 8, 4, 1, name="second"))
    b.output(b.conv(y, 4, 4, 1, name="third"), (2, 4, 16, 16))
    model = b.model()
    result = ir.from_proto(model)
    slim_model(result)
    assert shapes(result)["second.weight"][1] == 8 - dead
    assert difference(run(model, X), run(result, X)) < 1e-5


def test_a_fused_convolution_with_a_sum_is_the_end_of_a_residual_block():
    b = Builder(17)
    x = b.call("Relu", b.conv(b.input((2, 3, 16, 16)), 3, 8, 1, name="stem"))
    inner = b.call("FusedConv", x, b.weight(6, 8, 1, 1, name="inner"), domain=MS, activation="Relu")
    weights = (b.weight(8, 6, 1, 1, name="outer"), b.vector(8, name="outer.bias"))
    x = b.call("FusedConv", inner, *weights, x, domain=MS, activation="Relu")
    b.output(b.conv(x, 8, 4, 1, name="last"), (2, 4, 16, 16))
    graph = trace_onnx(ir.from_proto(b.model()))
    trunk = next(s for s in graph.sets if s.name == "stem")
    assert {name for name, _, _ in trunk.members} >= {"stem.weight", "inner", "outer", "outer.bias", "last.weight"}
    assert sorted(len(s.groups) for s in graph.sets) == [6, 8]


@pytest.mark.parametrize("simplified", [False, True])
def test_the_norm_of_a_sum_is_a_residual_add_and_a_layer_norm(simplified):
    kind = f"Skip{'Simplified' * simplified}LayerNormalization"
    b = Builder(17)
    x = b.call("MatMul", b.input((2, 3, 8), "x"), b.weight(8, 16, name="first"))
    shift = () if simplified else (b.vector(16, "shift"),)
    y = b.call("MatMul", b.call("Gelu", x, domain=MS), b.weight(16, 16, name="second"))
    names = [b.fresh("norm"), "", "", b.fresh("sum")]
    b.nodes.append(
        onnx.helper.make_node(kind, [x, y, b.vector(16, "scale"), *shift, b.vector(16, "added")], names, domain=MS)
    )
    b.output(b.call("MatMul", b.call("Add", names[0], names[3]), b.weight(16, 4, name="third")), (2, 3, 4))
    model = b.model()
    graph = trace_onnx(ir.from_proto(model))
    assert graph.unknown == {}
    (trunk,) = graph.sets
    assert {"first", "second", "scale", "added", "third"} <= {name for name, _, _ in trunk.members}
    assert not graph.exact.any()
    assert "statistics over channels" in graph.why_inexact(0)
    removed = ~graph.all_kept()
    removed[::4] = True
    remove_groups(graph, removed)
    run(graph.front_end.model, {"x": image(2, 3, 8)})  # whole, and of the right sizes
    assert shapes(graph.front_end.model)["scale"] == (12,)


@pytest.mark.parametrize("kind", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_products_with_integers_lose_dead_channels(kind):
    b = Builder(17)
    weight = b.rng.integers(-100, 100, (8, 8)).astype(np.int8)
    weight[:, [0, 3]] = 7
    scales, points = b.literal(np.linspace(0.01, 0.02, 8, dtype=np.float32)), np.full(8, 3, np.int8)
    points[[0, 3]] = 7
    more = (b.literal(weight, "middle"), scales, b.literal(points, "points"))

    def between(x):
        x = b.call("Relu", x)
        if kind == "DynamicQuantizeMatMul":
            return b.call("Relu", b.call(kind, x, *more, domain=MS))
        x, scale, point = b.call("DynamicQuantizeLinear", x, outputs=3)
        return b.call("Relu", b.call(kind, x, more[0], scale, scales, point, more[2], domain=MS))

    model = two(b, between)
    result = ir.from_proto(model)
    slim_model(result)
    found, feeds = shapes(result), {"x": image(3, 6)}
    assert (found["first"], found["middle"], found["points"], found["second"]) == ((6, 6), (6, 6), (6,), (6, 4))
    assert difference(run(model, feeds, optimize=True), run(result, feeds, optimize=True)) < 1e-5

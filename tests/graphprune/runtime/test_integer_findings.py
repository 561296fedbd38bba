"""Layers of quantized files that onnxruntime computes in float32, or slowly, and why."""

import re

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphprune.runtime.machine import machine_facts
from graphprune.runtime.optimized import optimized_graph
from graphprune.runtime.optimized_nodes import INTEGERS

pytestmark = pytest.mark.skipif(machine_facts().architecture != "x86_64", reason="the kernels of x86-64")

BYTES = {"uint8": np.uint8(128), "int8": np.int8(0), "uint16": np.uint16(9000)}


def quantized(body, outputs="float[n,a,b,c] y", channels=16, kernel=(16, 16, 3, 3), **options):
    """A file with the values `x`, `d` (the same, rounded to bytes) and `w` (a weight from bytes)."""
    kind, stored = options.get("activations", "uint8"), options.get("weights", np.int8)
    axis = options.get("axis", 0)
    rank = f"{channels},16,16" if len(kernel) > 2 else f"{channels}"
    text = f"""<ir_version: 10, opset_import: ["" : 21]> net (float[n,{rank}] x) => ({outputs}) {{
        q = QuantizeLinear(x, one, zero)  d = DequantizeLinear(q, one, zero)
        w = DequantizeLinear<axis = {axis}>(stored, scales, zeros) {body} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    scales = np.linspace(0.001, 0.01, kernel[axis], dtype=np.float32)
    literals = {
        "one": np.float32(0.02),
        "zero": BYTES[kind],
        "stored": rng.integers(-7, 8, kernel).astype(stored),
        "scales": scales,
        "zeros": np.zeros(kernel[axis], stored),
        "bias": np.arange(len(scales), dtype=np.int32) * 100,
        "row": np.ones((1, len(scales)), np.float32),
        "bias_zeros": np.zeros(len(scales), np.int32),
        "bias_scales": (scales * np.float32(0.02) * options.get("bias_factor", 1)).astype(np.float32),
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, array in literals.items():
        if name not in read:
            continue
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model.SerializeToString()


def rounded(value, name="y"):
    return f"{name}q = QuantizeLinear({value}, one, zero) {name} = DequantizeLinear({name}q, one, zero)"


CONV = "c = Conv<pads = [1, 1, 1, 1]>(d, w)"
BIASED = "b = DequantizeLinear<axis = 0>(bias, bias_scales, bias_zeros)"
PRODUCT = {"outputs": "float[n,a] y", "kernel": (8, 16)}

REASONS = [
    (f"{CONV} y = Exp(c)", {}, "its output is not rounded to bytes: Exp reads it"),
    ("y = Conv(d, w)", {}, "its output is not rounded to bytes: it is one of the model"),
    (f"{CONV} h = HardSwish(c) {rounded('h')}", {}, "HardSwish stands between it and the rounding of its output"),
    (f"{CONV} e = Exp(c) {rounded('c', 'z')} y = Add(z, e)", {}, "its output is read 2 times before it is rounded"),
    (f"c = Conv(x, w) {rounded('c')}", {}, "its input 'x' is not quantized"),
    (f"v = Reshape(x, sizes) c = Conv(d, v) {rounded('c')}", {}, "its weight is not quantized"),
    (
        "v = Identity(plain) y = Conv(x, v)",
        {},
        "in float32 in the file: neither its input nor its weight is quantized",
    ),
    (f"c = ConvTranspose(d, w) {rounded('c')}", {}, "computes no transposed convolution in integers"),
    (f"{CONV} {rounded('c')}", {"activations": "uint16"}, "its activations are uint16.*for 8 bits alone"),
    (f"{CONV} {rounded('c')}", {"weights": ml_dtypes.int4}, "its weights are int4.*for 8 bits alone"),
    (
        f"{BIASED} c = Conv(d, w, b) {rounded('c')}",
        {"bias_factor": 3},
        "the scale of its bias is not that of its input",
    ),
    (f"{BIASED} y = Gemm<transB = 1, alpha = 0.5>(d, w, b)", PRODUCT, "alpha and beta are not both 1"),
    ("y = Gemm<transB = 1>(d, w, row)", PRODUCT, "its bias has 2 dimensions"),
    ("y = Gemm<transB = 1>(d, w)", {**PRODUCT, "axis": 1}, "a scale for each input, and not for each output"),
]


@pytest.mark.parametrize(("body", "options", "reason"), REASONS, ids=[reason[:40] for *_, reason in REASONS])
def test_a_layer_in_float32_says_why(body, options, reason):
    content = quantized(body, **options)
    model = onnx.load_model_from_string(content)
    given = {"plain": np.ones((16, 16, 3, 3), np.float32), "sizes": np.array([-1, 16, 1, 1])}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in given.items() if name in body
    )
    graph = optimized_graph(model.SerializeToString())
    (finding,) = [finding for finding in graph.findings if finding.about == INTEGERS]
    assert not {node.layout for node in graph.nodes if node.name == finding.node} & {"int8"}
    assert finding.op_type.split("+")[0].removeprefix("Fused") in ("Conv", "ConvTranspose", "Gemm")
    assert re.search(reason, finding.reason)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (f"{CONV} {rounded('c')}", {}),
        (f"{CONV} {rounded('c')}", {"activations": "int8"}),
        (f"{BIASED} c = Conv(d, w, b) {rounded('c')}", {}),
        (f"c = Conv<group = 16>(d, w) {rounded('c')}", {"kernel": (16, 1, 3, 3)}),
        ("y = Gemm<transB = 1>(d, w)", PRODUCT),
        ("y = MatMul(d, w)", {**PRODUCT, "kernel": (16, 8), "axis": 1}),
    ],
)
def test_what_is_computed_in_integers_finds_nothing(body, options):
    graph = optimized_graph(quantized(body, **options))
    assert [finding for finding in graph.findings if finding.about == INTEGERS] == []
    assert any(node.layout == "int8" for node in graph.nodes)


def test_signed_activations_that_are_read_twice():
    body = f"{CONV} {rounded('c', 'z')} e = Conv(z, w) f = Conv(z, w) {rounded('e', 'y')} {rounded('f', 'g')}"
    content = quantized(body, "float[n,a,b,c] y, float[n,h,i,j] g", activations="int8")
    graph = optimized_graph(content)
    reasons = [finding.reason for finding in graph.findings]
    assert all(reason.startswith("signed activations") for reason in reasons)
    assert [reason.split("; ")[1] for reason in reasons] == [
        f"its {w} is read 2 times" for w in ("output", "input", "input")
    ]
    assert graph.count("QLinearConv") == 0
    content = quantized(body, "float[n,a,b,c] y, float[n,h,i,j] g")
    assert optimized_graph(content).count("QLinearConv") == 3


@pytest.mark.parametrize(
    ("kernel", "groups", "reason"),
    [
        ((24, 20, 3, 3), 1, "20 channels are no multiples of 8"),
        ((19, 17, 1, 1), 1, "17 and 19 channels are no multiples of 8"),
        ((20, 1, 3, 3), 20, "depthwise with 20 channels"),
        ((16, 4, 3, 3), 4, "4 groups are computed one after the other"),
    ],
)
def test_slow_integers(kernel, groups, reason):
    body = f"c = Conv<group = {groups}>(d, w) {rounded('c')}"
    (finding,) = optimized_graph(quantized(body, channels=kernel[1] * groups, kernel=kernel)).findings
    assert finding.op_type == "QLinearConv"
    assert reason in finding.reason


def test_an_image_has_three_channels():
    graph = optimized_graph(quantized(f"{CONV} {rounded('c')}", channels=3, kernel=(16, 3, 3, 3)))
    assert graph.findings == ()


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        (f"{CONV} {rounded('c')}", {"axis": 1}, "the scales of its weight are not along its outputs"),
        (f"{BIASED} y = Gemm<transB = 1>(d, w, b)", {**PRODUCT, "bias_factor": 3}, "the scale of its bias is not"),
    ],
)
def test_numbers_that_onnxruntime_takes_for_others(body, options, said):
    """The reason says that the numbers are wrong: here they are."""
    import onnxruntime as ort

    content = quantized(body, **options)
    (finding,) = [finding for finding in optimized_graph(content).findings if finding.about == INTEGERS]
    assert finding.reason.startswith(f"WRONG NUMBERS: {said}")
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    shape = (2, 16) if "Gemm" in body else (2, 16, 16, 16)
    feed = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    right, wrong = (ort.InferenceSession(content, options).run(None, feed)[0] for options in (plain, None))
    assert np.abs(right - wrong).max() > 0.03 * np.abs(right).max()

"""Layers of every kind: in int8 with the right numbers, or left in float32 and named."""

import onnx
import pytest
from quantizable import QUICK, errors, noise, parsed

from graphprune.int8.quantize import quantize_onnx

IMAGES, ROWS, TOKENS = "float[n,4,8,8] x", "float[n,24] x", "float[n,4,4] x"
IF = "size = Size(x) large = Greater(size, limit)"
LIMIT = "int64 limit = {100}"


def network(taken, literals, body, dims="n,a,b,c"):
    """One output, of so many dimensions."""
    return f"net ({taken}) => (float[{dims}] y) <{literals}> {{ {body} }}"


KINDS = {
    # transposed convolutions
    "in groups": (IMAGES, "float[4,4,3,3] w, float[8] b", "y = ConvTranspose<group = 2>(x, w, b)"),
    "depthwise": (IMAGES, "float[4,1,3,3] w, float[4] b", "y = ConvTranspose<group = 4>(x, w, b)"),
    "in one piece": (IMAGES, "float[4,6,3,3] w, float[6] b", "y = ConvTranspose(x, w, b)"),
    "with the bias of another": (
        *(IMAGES, "float[4,4,3,3] v, float[4,4,3,3] w, float[4] b"),
        "a = Conv(x, v, b) y = ConvTranspose(a, w, b)",
    ),
    # kernels of several layers
    "one kernel there and back": (
        *(IMAGES, "float[6,4,3,3] w, float[6] b, float[4] c"),
        "a = Conv(x, w, b) y = ConvTranspose(a, w, c)",
    ),
    "one square kernel there and back": (
        *(IMAGES, "float[4,4,3,3] w, float[4] b, float[4] c"),
        "a = Conv(x, w, b) y = ConvTranspose(a, w, c)",
    ),
    "one matrix there and back": (
        *(ROWS, "float[24,24] w, float[24] b"),
        "a = Gemm<transB = 1>(x, w, b) y = MatMul(a, w)",
        "n,a",
    ),
    # what is added to a matrix product
    "a row": (ROWS, "float[24,5] w, float[1,5] b", "y = Gemm(x, w, b)", "n,a"),
    "a number": (ROWS, "float[24,5] w, float b", "y = Gemm(x, w, b)", "n,a"),
    "a list of one": (ROWS, "float[24,5] w, float[1] b", "y = Gemm(x, w, b)", "n,a"),
    "with factors": (ROWS, "float[24,5] w, float[5] b", "y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)", "n,a"),
    # weights that are computed
    "cast": (
        *(IMAGES, "float16[5,4,3,3] w, float16[5] b"),
        "k = Cast<to = 1>(w) c = Cast<to = 1>(b) y = Conv(x, k, c)",
    ),
    "bytes and scales": (
        *(IMAGES, "int8[5,4,3,3] w, float[5,1,1,1] s"),
        "c = Cast<to = 1>(w) k = Mul(c, s) y = Conv(x, k)",
    ),
    # bodies
    "features read in bodies": (
        *(IMAGES, f"float[4,4,3,3] w, float[4,4,3,3] v, {LIMIT}"),
        f"a = Conv(x, w) r = Relu(a) {IF} q = If(large) <then_branch = one () => (p) {{ p = Relu(a) }}, "
        "else_branch = two () => (o) { o = Sigmoid(r) }> y = Conv(q, v)",
    ),
    "a bias read in bodies": (
        *(IMAGES, f"float[4,4,3,3] w, float[4] b, {LIMIT}"),
        f"a = Conv(x, w, b) {IF} s = If(large) <then_branch = one () => (p) {{ p = ReduceSum<keepdims = 0>(b) }}, "
        "else_branch = two () => (o) { o = ReduceMax<keepdims = 0>(b) }> y = Add(a, s)",
    ),
    # masks
    "masked by infinity": (
        *(TOKENS, "float[4,4] mask, float[4,5] w"),
        "a = Add(x, mask) p = Softmax(a) y = MatMul(p, w)",
        "n,a,b",
    ),
    # images of other dimensions
    "one": ("float[n,4,40] x", "float[5,4,7] w, float[5] b", "y = Conv(x, w, b)", "n,a,b"),
    "three": ("float[n,2,5,5,5] x", "float[3,2,3,3,3] w", "y = Conv(x, w)", "n,a,b,c,d"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_in_int8_with_the_right_numbers(tmp_path, kind):
    mask = [[0.0 if column <= row else float("-inf") for column in range(4)] for row in range(4)]
    source = parsed(tmp_path, network(*KINDS[kind]), mask=mask)
    arrays = noise(source, 64)
    report = quantize_onnx(source, tmp_path / "int8.onnx", inputs=arrays, options=QUICK)
    assert (report.float_layers, report.unable) == ((), {})
    stored = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in stored) == report.layers
    assert max(errors(source, tmp_path / "int8.onnx", arrays)) < 5e-3


STAY = {
    "half": (
        *(IMAGES, "float[4,4,3,3] w, float16[4,4,3,3] v, float16[4] b"),
        "a = Conv(x, w) h = Cast<to = 10>(a) r = Relu(h) c = Conv(r, v, b) y = Cast<to = 1>(c)",
        {"Conv_1": "computes in float16"},
    ),
    "double": (
        *(IMAGES, "float[4,4,3,3] w, double[6,6] v"),
        "a = Conv(x, w) h = Cast<to = 11>(a) c = MatMul(h, v) y = Cast<to = 1>(c)",
        {"MatMul_0": "computes in double"},
    ),
    "in both bodies": (
        *(IMAGES, f"float[4,4,3,3] w, float[4,4,3,3] v, {LIMIT}"),
        f"a = Conv(x, w) r = Relu(a) {IF} y = If(large) <then_branch = one () => (p) {{ p = Conv(r, v) }}, "
        "else_branch = two () => (o) { c = Relu(a) o = Conv(c, w) }>",
        {"p": "is in a body of 'If_0'", "o": "is in a body of 'If_0'"},
    ),
    "in a loop": (
        *(IMAGES, "float[4,4,3,3] w, float[4,4,3,3] v, int64 times = {2}, bool yes = {1}"),
        "a = Conv(x, w) r = Relu(a) y = Loop(times, yes, a) <body = step (int64 i, bool go, float[n,4,6,6] s) => "
        "(bool on, float[n,4,6,6] t) { on = Identity(go) c = Conv<pads = [1, 1, 1, 1]>(s, v) t = Add(c, r) }>",
        {"c": "is in a body of 'Loop_0'"},
    ),
    "recurrent": (
        *("float[n,4,6] x", "float[6,6] v, float[1,20,6] w, float[1,20,5] r"),
        "a = MatMul(x, v) y, h, c = LSTM<hidden_size = 5>(a, w, r)",
        {"LSTM_0": "LSTM has no int8"},
    ),
}


@pytest.mark.parametrize("kind", STAY)
def test_what_stays_is_named_and_the_rest_is_in_int8(tmp_path, kind, caplog):
    *text, expected = STAY[kind]
    source = parsed(tmp_path, network(*text))
    arrays = noise(source, 64)
    report = quantize_onnx(source, tmp_path / "int8.onnx", inputs=arrays, options=QUICK)
    assert report.unable == expected
    assert report.float_layers == tuple(expected)
    assert report.layers == 1 + len(expected)
    stored = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in stored) == 1
    assert max(errors(source, tmp_path / "int8.onnx", arrays)) < 1e-2
    name, reason = next(iter(expected.items()))
    assert f"'{name}' stays in float32: {reason}" in caplog.text

"""Every operator, in the forms that it comes in, computes in torch what it computes in onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from builder import FLOAT, INT64, Builder

from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.importer import import_onnx
from graphprune.passes.importer.operators import OPERATORS
from graphprune.passes.onnx.model import load_model

IMAGE = (2, 6, 9, 8)
SETTINGS = ort.SessionOptions()
SETTINGS.log_severity_level = 4
SETTINGS.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def check(tmp_path, g, shapes, *, tolerance=2e-6, low=-2.0, high=2.0):
    """Run a model in both, on the same numbers; returns what onnxruntime gives."""
    path = tmp_path / "net.onnx"
    onnx.save(g.model(), path)
    rng = np.random.default_rng(0)
    feeds = {name: rng.uniform(low, high, shape).astype(np.float32) for name, shape in shapes.items()}
    expected = ort.InferenceSession(path, SETTINGS).run(None, feeds)
    module = import_onnx(path)
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert tuple(mine.shape) == theirs.shape
        assert mine.numpy().dtype == theirs.dtype
        scale = max(1.0, float(np.abs(theirs).max(initial=0))) if theirs.dtype == np.float32 else 1
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=tolerance * scale)
    return expected


def one(kind, *, opset=20, literals=(), outputs=1, shape=IMAGE, domain="", **attributes):
    """A model of one node on `x`."""
    g = Builder(opset)
    x = g.input(["n", *shape[1:]])
    held = [g.literal(np.asarray(array)) if array is not None else "" for array in literals]
    results = g.call(kind, x, *held, outputs=outputs, domain=domain, **attributes)
    for at, result in enumerate([results] if outputs == 1 else results):
        rank = None if kind in ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Gather") else len(shape)
        dtype = INT64 if kind == "ArgMax" or (kind == "TopK" and at) else FLOAT
        g.output(result, None if rank is None else [f"d{dim}_{result}" for dim in range(rank)], dtype)
    return g


def floats(*shape, seed=1, positive=False):
    found = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.abs(found) + 0.5 if positive else found


UNARY = (
    "Abs Atan Cos Elu Erf Exp Floor Ceil Identity LeakyRelu Neg Relu Selu Sigmoid Sign Sin Sinh Cosh Softplus Softsign "
    "Tanh HardSigmoid HardSwish Mish Gelu Celu ThresholdedRelu Round Asinh Shrink Tan"
).split()
POSITIVE = ("Log", "Reciprocal", "Sqrt", "Acosh")
WITHIN = ("Acos", "Asin", "Atanh")


@pytest.mark.parametrize("kind", UNARY)
def test_functions_of_one_number(tmp_path, kind):
    check(tmp_path, one(kind), {"x": IMAGE}, tolerance=1e-5)


@pytest.mark.parametrize("kind", POSITIVE)
def test_functions_of_positive_numbers(tmp_path, kind):
    check(tmp_path, one(kind), {"x": IMAGE}, low=1.0, high=3.0, tolerance=1e-5)


@pytest.mark.parametrize("kind", WITHIN)
def test_functions_of_small_numbers(tmp_path, kind):
    check(tmp_path, one(kind), {"x": IMAGE}, low=-0.9, high=0.9, tolerance=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.5}),
        ("HardSigmoid", {"alpha": 0.1, "beta": 0.3}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("Gelu", {"approximate": "tanh"}),
        ("Clip", {"literals": (np.float32(-0.5), np.float32(1.0))}),
        ("Clip", {"literals": (np.float32(0), np.float32(6))}),
        ("Clip", {"literals": (None, np.float32(1.0))}),
        ("Clip", {"opset": 6, "min": -0.5, "max": 0.25}),
        ("PRelu", {"literals": (floats(6, 1, 1),)}),
        ("PRelu", {"literals": (floats(1),)}),
        ("PRelu", {"literals": (floats(6, 9, 8),)}),
        ("Dropout", {}),
        ("Dropout", {"opset": 10}),
        ("Add", {"literals": (floats(6, 1, 1),)}),
        ("Sub", {"literals": (floats(1, 6, 1, 1),)}),
        ("Mul", {"literals": (floats(8),)}),
        ("Div", {"literals": (floats(9, 1, positive=True),)}),
        ("Pow", {"literals": (np.float32(2),)}),
        ("Mod", {"literals": (floats(8, positive=True),), "fmod": 1}),
        ("Max", {"literals": (floats(6, 1, 1), np.float32(0.1))}),
        ("Min", {"literals": (floats(6, 1, 1),)}),
        ("Sum", {"literals": (floats(6, 1, 1), floats(8))}),
        ("Mean", {"literals": (floats(6, 9, 8),)}),
        ("QuickGelu", {"domain": "com.microsoft", "alpha": 1.3}),
    ],
)
def test_element_wise_with_settings(tmp_path, kind, options):
    check(tmp_path, one(kind, **options), {"x": IMAGE}, tolerance=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
        {"group": 3},
        {"group": 6},
    ],
)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions(tmp_path, kind, options):
    group = options.get("group", 1)
    weight = floats(12, 6 // group, 3, 3) if kind == "Conv" else floats(6, 12 // group, 3, 3)
    check(tmp_path, one(kind, literals=(weight, floats(12)), **options), {"x": IMAGE}, tolerance=1e-5)


def test_convolutions_of_other_ranks_and_settings(tmp_path):
    check(tmp_path, one("Conv", literals=(floats(4, 6, 3),), shape=(2, 6, 9), pads=[1, 0]), {"x": (2, 6, 9)})
    check(tmp_path, one("Conv", literals=(floats(4, 2, 2, 2, 2),), shape=(1, 2, 4, 5, 6)), {"x": (1, 2, 4, 5, 6)})
    stretched = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    check(tmp_path, one("ConvTranspose", literals=(floats(6, 4, 3, 3), floats(4)), **stretched), {"x": IMAGE})
    wanted = {"strides": [2, 2], "output_shape": [18, 17]}
    check(tmp_path, one("ConvTranspose", literals=(floats(6, 4, 3, 3),), **wanted), {"x": IMAGE})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in ("MaxPool", "AveragePool")
        for options in (
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
            {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": 1},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
            {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]},
        )
    ]
    + [
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1], "count_include_pad": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("LpPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
    ],
)
def test_pooling(tmp_path, kind, options):
    check(tmp_path, one(kind, **options), {"x": IMAGE}, tolerance=1e-5)


@pytest.mark.parametrize("mode", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize(
    ("kind", "rounding"), [("linear", None), *(("nearest", r) for r in ("floor", "ceil", "round_prefer_floor"))]
)
@pytest.mark.parametrize("factor", [2.0, 1.5, 0.5])
def test_resizing(tmp_path, kind, mode, rounding, factor):
    scales = np.float32([1, 1, factor, 2.0])
    options = {"mode": kind, "coordinate_transformation_mode": mode}
    options |= {"nearest_mode": rounding} if rounding else {}
    g = one("Resize", literals=(None, scales), **options)
    check(tmp_path, g, {"x": IMAGE}, tolerance=2e-5)


def test_resizing_to_sizes_of_old_opsets_and_of_axes(tmp_path):
    check(
        tmp_path,
        one("Resize", literals=(None, None, np.int64([2, 6, 13, 5])), mode="linear"),
        {"x": IMAGE},
        tolerance=2e-5,
    )
    check(tmp_path, one("Resize", opset=10, literals=(np.float32([1, 1, 2, 2]),), mode="nearest"), {"x": IMAGE})
    check(tmp_path, one("Upsample", opset=9, literals=(np.float32([1, 1, 2, 3]),), mode="nearest"), {"x": IMAGE})
    axes = {"mode": "nearest", "axes": [2, 3]}
    check(tmp_path, one("Resize", literals=(None, np.float32([2, 2])), **axes), {"x": IMAGE})
    cubic = {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}
    check(tmp_path, one("Resize", literals=(None, np.float32([1, 1, 2, 2])), **cubic), {"x": IMAGE}, tolerance=1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BatchNormalization", {"literals": (floats(6), floats(6), floats(6), floats(6, positive=True))}),
        ("InstanceNormalization", {"literals": (floats(6), floats(6))}),
        ("InstanceNormalization", {"literals": (floats(6), floats(6)), "shape": (2, 6, 1, 1), "epsilon": 0.1}),
        ("GroupNormalization", {"opset": 21, "literals": (floats(6), floats(6)), "num_groups": 3}),
        ("LayerNormalization", {"literals": (floats(8), floats(8))}),
        ("LayerNormalization", {"literals": (floats(9, 8),), "axis": 2}),
        ("RMSNormalization", {"literals": (floats(8),), "opset": 23}),
        ("RMSNormalization", {"literals": (floats(9, 8),), "axis": 2, "opset": 23, "epsilon": 0.1}),
        ("BiasGelu", {"literals": (floats(8),), "domain": "com.microsoft"}),
        ("LRN", {"size": 3, "alpha": 0.01}),
        ("LpNormalization", {"axis": 1}),
        ("MeanVarianceNormalization", {}),
    ],
)
def test_normalizations(tmp_path, kind, options):
    check(tmp_path, one(kind, **options), {"x": options.get("shape", IMAGE)}, tolerance=1e-5)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("kind", "Mean Sum Max Min Prod L1 L2 SumSquare LogSumExp".split())
def test_reductions(tmp_path, kind, opset):
    if opset == 18:
        check(tmp_path, one(f"Reduce{kind}", opset=18, literals=(np.int64([1, -1]),)), {"x": IMAGE}, tolerance=1e-5)
    else:
        check(tmp_path, one(f"Reduce{kind}", opset=11, axes=[1, -1]), {"x": IMAGE}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Softmax", {}),
        ("Softmax", {"axis": 1}),
        ("Softmax", {"opset": 11, "axis": 2}),
        ("LogSoftmax", {"axis": 1}),
        ("CumSum", {"literals": (np.int64(1),)}),
        ("ArgMax", {"axis": 1}),
        ("DepthToSpace", {"shape": (2, 8, 3, 4), "blocksize": 2}),
        ("DepthToSpace", {"shape": (2, 8, 3, 4), "blocksize": 2, "mode": "CRD"}),
        ("SpaceToDepth", {"shape": (2, 3, 4, 6), "blocksize": 2}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("Flatten", {}),
        ("Flatten", {"axis": 2}),
        ("Flatten", {"axis": 0}),
        ("Reshape", {"literals": (np.int64([0, 3, 2, -1]),)}),
        ("Unsqueeze", {"literals": (np.int64([1, -1]),)}),
        ("Unsqueeze", {"opset": 11, "axes": [1]}),
        ("Pad", {"literals": (np.int64([0, 0, 1, 2, 0, 0, 0, 1]), np.float32(0.5))}),
        ("Pad", {"literals": (np.int64([0, 0, 1, 2, 0, 0, 2, 1]),), "mode": "reflect"}),
        ("Pad", {"literals": (np.int64([0, 0, 1, 2, 0, 0, 2, 1]),), "mode": "edge"}),
        ("Pad", {"literals": (np.int64([0, 1, 0, 0, 0, 2, 0, 0]),)}),
        ("Pad", {"literals": (np.int64([0, 2, 1, 0, 0, 3, 0, 2]),), "mode": "reflect"}),
        ("Pad", {"literals": (np.int64([0, 1, 0, 0, 0, 0, 0, 2]),), "mode": "edge"}),
        ("Pad", {"literals": (np.int64([0, 3, 0, 4]),), "mode": "reflect", "shape": (2, 7)}),
        ("Pad", {"literals": (np.int64([0, 3, 0, 4]),), "mode": "wrap", "shape": (2, 7)}),
        ("Pad", {"opset": 10, "pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 1.0}),
        ("Slice", {"literals": (np.int64([1]), np.int64([-1]), np.int64([2]))}),
        ("Slice", {"literals": (np.int64([0, 8]), np.int64([2**62, -100]), np.int64([1, 2]), np.int64([2, -1]))}),
        ("Slice", {"opset": 9, "starts": [1, 0], "ends": [3, 5], "axes": [1, 3]}),
        ("Gather", {"literals": (np.int64([3, 0, -1]),), "axis": 1}),
        ("Gather", {"literals": (np.int64(2),), "axis": 2}),
        ("Gather", {"literals": (np.int64([[0, 1], [2, 3]]),), "axis": 3}),
        ("GatherElements", {"literals": (np.zeros(IMAGE, np.int64),), "axis": 1}),
        ("Tile", {"literals": (np.int64([1, 1, 2, 1]),)}),
        ("Expand", {"shape": (2, 6, 1, 1), "literals": (np.int64([1, 6, 3, 4]),)}),
        ("Trilu", {"upper": 0}),
        ("TopK", {"literals": (np.int64([3]),), "outputs": 2, "axis": 1}),
        ("Split", {"literals": (np.int64([2, 4]),), "outputs": 2, "axis": 1}),
        ("Split", {"num_outputs": 4, "outputs": 4, "axis": 3}),
        ("Split", {"opset": 11, "split": [1, 5], "outputs": 2, "axis": 1}),
    ],
)
def test_what_moves_and_what_picks(tmp_path, kind, options):
    shape = options.get("shape", IMAGE)
    check(tmp_path, one(kind, **options), {"x": shape}, tolerance=1e-5)


def test_matrix_products(tmp_path):
    for options in ({"transB": 1}, {"transB": 1, "alpha": 0.5, "beta": 2.0}, {"transA": 1}):
        g = Builder()
        shape = (5, 2) if "transA" in options else (2, 5)
        x = g.input(list(shape))
        weight = g.literal(floats(3, 5) if "transB" in options else floats(5, 3))
        g.output(g.call("Gemm", x, weight, g.literal(floats(3)), **options), ["a", "b"])
        check(tmp_path, g, {"x": shape}, tolerance=1e-5)
    check(tmp_path, one("MatMul", literals=(floats(8, 4),)), {"x": IMAGE}, tolerance=1e-5)
    g = Builder()
    g.output(g.call("Einsum", g.input(["n", 6, 9, 8]), g.literal(floats(6, 4)), equation="bchw,cd->bdhw"), list("abcd"))
    check(tmp_path, g, {"x": IMAGE}, tolerance=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(tmp_path, kind, gates, direction):
    directions, hidden = (2 if direction == "bidirectional" else 1), 5
    g = Builder()
    x = g.input(["t", "n", 4])
    weights = (floats(directions, gates * hidden, 4), floats(directions, gates * hidden, hidden, seed=2))
    held = [g.literal(w * 0.5) for w in (*weights, floats(directions, 2 * gates * hidden, seed=3))]
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    names = g.call(kind, x, *held, outputs=2, hidden_size=hidden, direction=direction, **options)
    g.output(names[0], ["t", directions, "n", hidden])
    g.output(names[1], [directions, "n", hidden])
    check(tmp_path, g, {"x": (7, 3, 4)}, tolerance=1e-5)


def test_sizes_are_computed_outside_torch(tmp_path):
    """Shape, Gather, arithmetic and Concat make the shape of a Reshape, as exporters write it."""
    g = Builder()
    x = g.input(["n", 6, 9, 8])
    shape = g.call("Shape", x)
    batch = g.call("Gather", shape, g.literal(np.int64(0)), axis=0)
    channels = g.call("Gather", shape, g.literal(np.int64([1])), axis=0)
    half = g.call("Div", channels, g.literal(np.int64([2])))
    parts = [
        g.call("Unsqueeze", batch, g.literal(np.int64([0]))),
        g.literal(np.int64([2])),
        half,
        g.literal(np.int64([-1])),
    ]
    g.output(g.call("Reshape", x, g.call("Concat", *parts, axis=0)), ["n", 2, 3, 72])
    assert check(tmp_path, g, {"x": IMAGE})[0].shape == (2, 2, 3, 72)


def test_every_operator_of_the_table_is_of_the_specification():
    unknown = []
    for kind in OPERATORS:
        domain, _, name = kind.rpartition("::")
        if domain == "" and name not in {schema.name for schema in onnx.defs.get_all_schemas_with_history()}:
            unknown.append(kind)
    assert unknown == []


def test_what_has_no_torch_form_is_named(tmp_path):
    g = one("Bernoulli")
    onnx.save(g.model(), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match="there is no torch form of Bernoulli: the file can be slimmed"):
        import_onnx(tmp_path / "net.onnx")
    g = Builder()
    boxes, scores = g.input([1, 8, 4]), g.input([1, 2, 8], "scores")
    g.output(g.call("NonMaxSuppression", boxes, scores), ["k", 3], INT64)
    onnx.save(g.model(), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match="NonMaxSuppression"):
        import_onnx(load_model(tmp_path / "net.onnx"))


def test_quantized_files_are_refused_with_what_to_do(tmp_path):
    g = Builder()
    x = g.input(["n", 3, 4, 4])
    scale, zero = g.literal(np.float32(0.1)), g.literal(np.uint8(0))
    q = g.call("QuantizeLinear", x, scale, zero)
    g.output(g.call("DequantizeLinear", q, scale, zero), ["n", 3, 4, 4], FLOAT)
    onnx.save(g.model(), tmp_path / "net.onnx")
    module = import_onnx(tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match="compress the float32 file it was made from"):
        module(torch.zeros(1, 3, 4, 4))

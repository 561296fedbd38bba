"""Files that take something else than one float32 image with its channels first."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from quantizable import QUICK, errors, noise, parsed

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.errors import DataError, UsageError
from graphprune.inputs import DataOptions
from graphprune.int8.inputs import example_of, samples_of, specs_of
from graphprune.int8.quantize import quantize_onnx

FIRST = "net (float[n,3,8,8] x) => (float[n,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
LAST = """net (float[n,8,8,3] x) => (float[n,4,6,6] y) <float[4,3,3,3] w>
{ t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w) }"""
BYTES = """net (uint8[n,3,8,8] x) => (float[n,4,6,6] y) <float[4,3,3,3] w, float s = {0.01}>
{ c = Cast<to = 1>(x) t = Mul(c, s) y = Conv(t, w) }"""
BYTES_LAST = """net (uint8[n,8,8,3] x) => (float[n,4,6,6] y) <float[4,3,3,3] w, float s = {0.01}>
{ c = Cast<to = 1>(x) u = Mul(c, s) t = Transpose<perm = [0, 3, 1, 2]>(u) y = Conv(t, w) }"""
TWO = """net (float[n,3,8,8] x, float[n,2] scale) => (float[n,4,6,6] y) <float[4,3,3,3] w, int64[2] axes = {2, 3}>
{ a = Conv(x, w) s = ReduceSum<keepdims = 1>(scale, one) u = Unsqueeze(s, axes) y = Mul(a, u) }""".replace(
    "axes = {2, 3}>", "axes = {2, 3}, int64[1] one = {1}>"
)
WAVE = "net (float[n,1,400] wave) => (float[n,8,m] y) <float[8,1,9] w> { y = Conv<strides = [4]>(wave, w) }"
FOUR = "net (float[n,4,8,8] x) => (float[n,5,6,6] y) <float[5,4,3,3] w> { y = Conv(x, w) }"
FIXED = "net (float[2,3,8,8] x) => (float[2,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose channels differ, so that a wrong order is seen in the ranges."""
    images = tmp_path_factory.mktemp("images")
    for at in range(10):
        pixels = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8) // np.uint8([1, 2, 4])
        Image.fromarray(pixels).save(images / f"{at}.png")
    return images


def range_of_the_input(path):
    """Lowest and highest number that the int8 file has for what its first layer reads."""
    graph = onnx.load(path).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (stored[name] for name in first.input[1:])
    low, high = (0, 255) if zero.dtype == np.uint8 else (-127, 127)
    return (low - int(zero)) * float(scale), (high - int(zero)) * float(scale)


def with_sizes(path, *dims):
    """The sizes of the first input, written otherwise."""
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        for dim, size in zip(value.type.tensor_type.shape.dim, dims, strict=False):
            dim.CopyFrom(
                onnx.TensorShapeProto.Dimension(**{"dim_value" if isinstance(size, int) else "dim_param": size})
            )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("text", [TWO, WAVE, FOUR, LAST, FIRST, BYTES, FIXED], ids=lambda text: text[4:40])
def test_arrays_serve_every_file(tmp_path, text):
    source, target = parsed(tmp_path, text), tmp_path / "int8.onnx"
    feeds = noise(source, 24)
    if "scale" in feeds:
        feeds["scale"] = np.float32(1) + feeds["scale"] / 10
    given = {name: np.concatenate([array] * (24 // len(array))) for name, array in feeds.items()}
    report = quantize_onnx(source, target, inputs=given, options=QUICK)
    assert (report.layers, report.float_layers) == (1, ())
    assert (report.calibration_images, report.search_images) == (8, 16)
    assert max(errors(source, target, feeds)) < 0.05
    assert report.input_shapes == {name: (0, *array.shape[1:]) for name, array in feeds.items()}
    assert report.input_shape == next(iter(feeds.values())).shape[1:]


@pytest.mark.parametrize("batch", [-1, 0, "batch", "n"])
def test_every_way_to_write_an_open_batch(tmp_path, batch):
    source = with_sizes(parsed(tmp_path, FIRST), batch) if batch else parsed(tmp_path, FIRST)
    report = quantize_onnx(source, tmp_path / "int8.onnx", noise(parsed(tmp_path, FIRST), 9)["x"], options=QUICK)
    assert report.calibration_images + report.search_images == 9
    model = onnx.load(tmp_path / "int8.onnx")
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


@pytest.mark.parametrize("text", [FIRST, LAST])
def test_images_in_both_orders_of_their_channels_and_normalized(tmp_path, folder, text):
    source = parsed(tmp_path, text)
    quantize_onnx(source, tmp_path / "a.onnx", folder, options=QUICK, data=DataOptions(mean=(0.5,), std=(0.5,)))
    assert range_of_the_input(tmp_path / "a.onnx") == pytest.approx((-1, 1), abs=0.05)
    samples = samples_of(onnx.load(source), folder, data=DataOptions(mean=(0, 0, 0), std=(1, 1, 1)))
    (batch,) = samples.batch(np.arange(10))
    axis = 3 if text is LAST else 1
    tops = batch.max(axis=tuple(at for at in range(4) if at != axis))
    np.testing.assert_allclose(tops, np.array([255, 127, 63]) / 255, atol=0.02)
    assert samples.shapes == {"x": (0, 8, 8, 3) if text is LAST else (0, 3, 8, 8)}


def test_the_preprocessing_of_the_file_holds_for_channels_last_as_well(tmp_path, folder):
    source = parsed(tmp_path, LAST)
    model = onnx.load(source)
    noted = json.dumps(Preprocess.of((8, 8), mean=(0,), std=(0.1,)).to_dict())
    model.metadata_props.add(key="graphprune_preprocessing", value=noted)
    (batch,) = samples_of(model, folder).batch(np.arange(10))
    assert (batch.min(), batch.max()) == pytest.approx((0, 10), abs=0.1)


@pytest.mark.parametrize("text", [BYTES, BYTES_LAST])
def test_bytes_go_in_as_they_are(tmp_path, folder, text, caplog):
    source = parsed(tmp_path, text)
    caplog.set_level("INFO")
    quantize_onnx(source, tmp_path / "a.onnx", folder, options=QUICK)
    (batch,) = samples_of(onnx.load(source), folder).batch(np.arange(10))
    assert batch.dtype == np.uint8
    assert batch.max(axis=(0, 2, 3) if text is BYTES else (0, 1, 2)).tolist() == [255, 127, 63]
    assert "preprocessing: none, the pixels are taken as they are" in caplog.text
    assert range_of_the_input(tmp_path / "a.onnx") == pytest.approx((0, 255), abs=3)
    with pytest.raises(UsageError, match="leave out `mean` and `std`"):
        samples_of(onnx.load(source), folder, data=DataOptions(mean=(0.5,)))
    floats = ImageSource(np.zeros((4, 8, 8, 3), np.float32), Preprocess.of((8, 8)))
    with pytest.raises(DataError, match="floating-point numbers where the model takes bytes"):
        samples_of(onnx.load(source), floats)


def test_arrays_in_files_serve_what_is_no_image(tmp_path):
    for text, name in ((WAVE, "wave"), (FOUR, "x")):
        model = onnx.load(parsed(tmp_path, text))
        array = noise(tmp_path / "m.onnx", 5)[name]
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", **{name: array})
        for file in ("a.npy", "a.npz"):
            np.testing.assert_array_equal(samples_of(model, tmp_path / file).batch(np.arange(5))[0], array)
    np.savez(tmp_path / "two.npz", **noise(parsed(tmp_path, TWO), 5))
    assert len(samples_of(onnx.load(tmp_path / "m.onnx"), tmp_path / "two.npz")) == 5


def test_samples_stand_where_the_batch_is_and_other_arrays_are_alike_for_all():
    values = onnx.parser.parse_graph(
        "net (float[n,3] x, float[2,n,5] state, int64 rate, float[4,1] table, float[points,2] grid) => (float y) { }"
    ).input
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", values, []))
    arrays = {
        "x": np.zeros((6, 3), np.float32) + np.arange(6, dtype=np.float32)[:, None],
        "state": np.zeros((2, 6, 5), np.float32) + np.arange(6, dtype=np.float32)[:, None],
        "rate": np.int64(16000),
        "table": np.zeros((4, 1), np.float32),
        "grid": np.zeros((7, 2), np.float64),
    }
    samples = samples_of(model, None, arrays)
    x, state, rate, table, grid = samples.subset(np.array([5, 2])).batch(np.array([1, 0]))
    assert x[:, 0].tolist() == [2, 5]
    assert state[0, :, 0].tolist() == [2, 5]
    assert (rate.item(), table.shape, grid.shape, grid.dtype) == (16000, (4, 1), (7, 2), np.float32)
    assert samples.shapes == {"x": (0, 3), "state": (2, 0, 5), "rate": (), "table": (4, 1), "grid": (7, 2)}


def test_a_fixed_batch_is_filled_and_other_inputs_of_one_are_alike_for_all(tmp_path):
    text = """net (float[1,3,8,8] x, float[1,1,1,1] gain) => (float[1,4,6,6] y) <float[4,3,3,3] w>
    { a = Conv(x, w) y = Mul(a, gain) }"""
    source = parsed(tmp_path, text)
    feeds = noise(source)
    given = {"x": np.random.default_rng(0).random((9, 3, 8, 8)).astype(np.float32), "gain": feeds["gain"]}
    report = quantize_onnx(source, tmp_path / "int8.onnx", inputs=given, options=QUICK)
    assert (report.calibration_images, report.search_images) == (3, 6)
    assert report.input_shapes == {"x": (0, 3, 8, 8), "gain": (1, 1, 1, 1)}
    example = example_of(source, given)
    assert {name: array.shape for name, array in example.items()} == {"x": (1, 3, 8, 8), "gain": (1, 1, 1, 1)}


def test_tensors_are_arrays_as_well(tmp_path):
    source = parsed(tmp_path, FIRST)
    array = noise(source, 9)["x"]
    for at, given in enumerate((array, torch.from_numpy(array))):
        gp.quantize_onnx(source, tmp_path / f"{at}.onnx", given, options=QUICK)
    gp.quantize_onnx(source, tmp_path / "2.onnx", inputs={"x": torch.from_numpy(array)}, options=QUICK)
    assert len({(tmp_path / f"{at}.onnx").read_bytes() for at in range(3)}) == 1


def test_arrays_of_no_input_are_said(tmp_path, caplog):
    model = onnx.load(parsed(tmp_path, FIRST))
    samples_of(model, None, {"x": np.zeros((4, 3, 8, 8), np.float32), "labels": np.zeros(4)})
    assert "no input is called 'labels', that array is not used" in caplog.text


FEED = np.zeros((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (FIRST, {}, "there is no array for the input 'x' of the model, only none"),
        (TWO, {"x": FEED}, "there is no array for the input 'scale' of the model, only 'x'"),
        (TWO, {"x": FEED, "scale": np.ones((3, 2), np.float32)}, "there are 4 samples, and 3 of the input 'scale'"),
        (TWO, FEED, r"has 2 inputs \('x', 'scale'\), and images are for a single one: give arrays for all"),
        (FIRST, {"x": FEED[:0]}, r"'x' is empty, of shape \(0, 3, 8, 8\)"),
        (FIRST, {"x": FEED[:, :, :, :6]}, r"'x' is 4x3x8x6 where the model takes \?x3x8x8"),
        (FIRST, {"x": FEED[0]}, r"'x' is 3x8x8 where the model takes \?x3x8x8"),
        (FIRST, {"x": FEED.astype(np.uint8)}, "holds uint8 where the model takes float32 .pixels, perhaps"),
        (BYTES, {"x": FEED}, "holds float32 where the model takes uint8"),
        (FIRST, {"x": FEED * np.float32("nan")}, "'x' holds numbers that are not finite"),
        (FIRST, {"x": FEED[:1]}, r"has 1 sample\(s\): at least two are needed"),
        (FOUR, "images", "takes \\?x4x8x8 numbers in float32, which are no images of 1 or 3 channels: give an array"),
        (WAVE, "images", "takes \\?x1x400 numbers in float32, which are no images"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, folder, text, given, message):
    source = parsed(tmp_path, text)
    images = folder if isinstance(given, str) else None if isinstance(given, dict) else given
    arrays = given if isinstance(given, dict) else None
    with pytest.raises(DataError, match=message) as caught:
        quantize_onnx(source, tmp_path / "int8.onnx", images, inputs=arrays, options=QUICK)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert not (tmp_path / "int8.onnx").exists()


def test_images_or_arrays_and_no_preprocessing_of_arrays(tmp_path, folder):
    model = onnx.load(parsed(tmp_path, FIRST))
    for images, arrays in ((None, None), (folder, {"x": FEED})):
        with pytest.raises(UsageError, match="give one of the two"):
            samples_of(model, images, arrays)
    for options in (DataOptions(mean=(0.5,)), DataOptions(image_size=8)):
        with pytest.raises(UsageError, match="arrays are taken as they are"):
            samples_of(model, None, {"x": FEED}, options)
    assert len(samples_of(model, None, {"x": FEED}, DataOptions(limit=3))) == 3


def test_an_empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none"):
        quantize_onnx(parsed(tmp_path, FIRST), tmp_path / "int8.onnx", tmp_path / "none", options=QUICK)


def test_literals_that_are_listed_are_no_inputs(tmp_path):
    model = onnx.load(parsed(tmp_path, FIRST))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, (4, 3, 3, 3)))
    assert [spec.name for spec in specs_of(model)] == ["x"]

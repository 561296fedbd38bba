import numpy as np
import onnx
import onnx.parser
import pytest

from graphprune import register_rule
from graphprune.errors import ModelLoadError, RuleError, UsageError
from graphprune.passes.channels import patterns
from graphprune.runtime import onnx_session
from graphprune.runtime.onnx_inputs import batch_of, input_shapes, input_specs, random_inputs
from graphprune.runtime.onnx_session import load_proto, one_line, open_session, with_outputs, with_own_literals

TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch,3,h,w] image, int64[batch] index) => (float[batch,3,h,w] out, int64[batch] same)
{ half = Constant<value = float {0.5}>() inner = Mul(image, half) out = Relu(inner) same = Identity(index) }
"""


def model(text=TWO_INPUTS):
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize("read", [open_session, load_proto])
@pytest.mark.parametrize("content", [b"", b"just some text, no model\n", b"\x08\x07\x12\xff"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, read, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"broken\.onnx: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


@pytest.mark.parametrize("read", [open_session, load_proto])
def test_a_missing_file_and_a_folder_are_told_apart(tmp_path, read):
    with pytest.raises(ModelLoadError, match="no such file"):
        read(tmp_path / "none.onnx")
    with pytest.raises(ModelLoadError, match="is a folder"):
        read(tmp_path)


def test_an_operator_onnxruntime_does_not_have_is_named():
    text = """<ir_version: 8, opset_import: ["" : 17, "made.up" : 1]>
    net (float[2] x) => (float[2] y) { y = made.up.Frobnicate(x) }"""
    with pytest.raises(
        ModelLoadError, match=r"Frobnicate.*; register_rule\(\.\.\., kernels=\.\.\.\) names the library"
    ):
        open_session(model(text))


def test_a_library_of_kernels_that_is_none_is_named(tmp_path):
    library = tmp_path / "kernels.so"
    library.write_text("no library")
    with register_rule("frobnicate", patterns.elementwise(), onnx="made.up::Frobnicate", kernels=library):
        for mapped in (False, True):
            with pytest.raises(RuleError, match=rf"{library}: onnxruntime finds no operators in it: .*"):
                open_session(model(), mapped=mapped)
    open_session(model())


def test_threads_and_provider_are_checked():
    with pytest.raises(UsageError, match="0 threads"):
        open_session(model(), threads=0)
    with pytest.raises(UsageError, match=r"MadeUp is not in this onnxruntime; it has .*CPUExecutionProvider"):
        open_session(model(), provider="MadeUp")


def test_inputs_are_described():
    image, index = input_specs(open_session(model()))
    assert (image.name, image.dtype, image.dims) == ("image", np.float32, ("batch", 3, "h", "w"))
    assert (index.name, index.dtype, index.dims) == ("index", np.int64, ("batch",))


def test_shapes_come_from_the_file_the_batch_and_the_user():
    specs = input_specs(open_session(model()))
    shapes = input_shapes(specs, batch=4, shapes={"image": (4, 3, 8, 9)})
    assert shapes == {"image": (4, 3, 8, 9), "index": (4,)}
    assert input_shapes(specs, batch=4, shapes={"image": (0, 3, 8, 9)}) == shapes


def test_the_batch_comes_from_the_user_the_shapes_or_the_file():
    specs = input_specs(open_session(model()))
    assert batch_of(specs) == 1
    assert batch_of(specs, batch=4) == 4
    assert batch_of(specs, shapes={"image": (2, 3, 8, 8)}) == 2
    assert batch_of(specs, shapes={"index": (5,)}) == 5  # its size has the same name
    with pytest.raises(UsageError, match="is for a batch of 5, 2 was asked for"):
        batch_of(specs, shapes={"image": (2, 3, 8, 8), "index": (5,)})
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[n,4] x, float[k,4] z) => (float[m,4] y)'
    apart = input_specs(open_session(model(text + " { y = Concat<axis = 0>(x, z) }")))
    assert batch_of(apart, batch=2, shapes={"z": (5, 4)}) == 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, r"input 'image' is batchx3xhxw; its shape must be given, as in image:1x3x224x224"),
        ({"image": (1, 4, 8, 8)}, "input 'image' is batchx3xhxw, the shape given is 1x4x8x8"),
        ({"image": (1, 3, 8)}, "the shape given is 1x3x8"),
        ({"picture": (1, 3, 8, 8)}, "no input is called 'picture'; it has 'image', 'index'"),
        ({"": (1, 3, 8, 8)}, "no input is called ''"),
    ],
)
def test_open_and_contradicting_sizes_are_errors(shapes, message):
    with pytest.raises(UsageError, match=message):
        input_shapes(input_specs(open_session(model())), shapes=shapes)


def test_a_shape_without_a_name_is_that_of_the_only_input():
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[n,h] x) => (float[n,h] y) { y = Relu(x) }'
    specs = input_specs(open_session(model(text)))
    assert input_shapes(specs, shapes={"": (2, 5)}) == {"x": (2, 5)}


def test_random_inputs_follow_type_shape_and_seed():
    specs = input_specs(open_session(model()))
    shapes = {"image": (2, 3, 4, 4), "index": (2,)}
    first, again, other = (random_inputs(specs, shapes, seed) for seed in (1, 1, 2))
    assert first["image"].dtype == np.float32
    assert first["index"].dtype == np.int64
    assert set(np.unique(random_inputs(specs, {"image": (1, 3, 1, 1), "index": (99,)})["index"])) == {0, 1}
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])


def test_inner_values_become_outputs():
    session = open_session(with_outputs(load_proto(model()), ["inner", "out"]))
    assert [item.name for item in session.get_outputs()] == ["out", "same", "inner"]
    image = np.array([[[[-2.0]], [[4.0]], [[6.0]]]], dtype=np.float32)
    (inner,) = session.run(["inner"], {"image": image, "index": np.zeros(1, np.int64)})
    np.testing.assert_array_equal(inner, image / 2)


def test_one_line_drops_breaks_and_the_code_of_onnxruntime():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : no good")) == "no good"
    assert one_line(ValueError()) == "ValueError"


def shared_literals():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n,3] x) => (float[n,3] y) <float[3] w = {1,2,3}, float[1] one = {1}>
    { a = Mul(x, w) b = Add(a, one) c = Mul(b, w) y = Add(c, one) }"""
    return onnx.parser.parse_model(text)


def test_every_reader_of_a_literal_can_have_its_own():
    own = onnx.load_model_from_string(with_own_literals(shared_literals()))
    read = [name for node in own.graph.node for name in node.input if name in {t.name for t in own.graph.initializer}]
    assert len(read) == len(set(read)) == len(own.graph.initializer) == 4
    x = np.ones((2, 3), np.float32)
    results = [open_session(m.SerializeToString()).run(None, {"x": x})[0] for m in (shared_literals(), own)]
    np.testing.assert_array_equal(*results)


def test_a_file_that_onnxruntime_cannot_make_exact_is_tried_with_literals_of_its_own(tmp_path, monkeypatch):
    """As 1.32 does with some files: it replaces a literal twice that two operators read."""
    right, seen = onnx_session.ort.InferenceSession, []

    def failing(content, options, **rest):
        seen.append(content)
        if isinstance(content, str):
            raise RuntimeError("Attempt to replace the existing tensor")
        return right(content, options, **rest)

    monkeypatch.setattr(onnx_session.ort, "InferenceSession", failing)
    onnx.save(shared_literals(), tmp_path / "m.onnx")
    assert open_session(tmp_path / "m.onnx", saturates=False).get_outputs()[0].name == "y"
    assert [type(content) for content in seen] == [str, bytes]
    with pytest.raises(ModelLoadError, match="Attempt to replace"):
        open_session(tmp_path / "m.onnx")

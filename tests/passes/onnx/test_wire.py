"""Files are read and written without their weights in memory, and nothing of them is lost."""

import numpy as np
import onnx
import pytest
from builder import Builder, difference, image, run, zero

from graphprune.passes.errors import ModelLoadError
from graphprune.passes.onnx import wire
from graphprune.passes.onnx.model import load_model
from graphprune.slimming import slim_onnx


def model(width: int = 64) -> onnx.ModelProto:
    b = Builder()
    b.output(b.conv(b.conv(b.input(("n", 3, 8, 8)), 3, width, name="first"), width, 4, name="second"), ("n", 4, 8, 8))
    made = b.model(producer_name="somebody", doc_string="what it is")
    made.metadata_props.add(key="classes", value="four")
    return made


def test_written_is_what_was_read(tmp_path):
    source = model()
    onnx.save(source, tmp_path / "a.onnx")
    loaded = load_model(tmp_path / "a.onnx")
    wire.write(loaded, tmp_path / "b.onnx")
    written = onnx.load(tmp_path / "b.onnx")
    assert [t.SerializeToString() for t in written.graph.initializer] == [
        t.SerializeToString() for t in source.graph.initializer
    ]
    kinds = [(n.op_type, n.name, *n.input, *n.output) for n in written.graph.node]
    assert kinds == [(n.op_type, n.name, *n.input, *n.output) for n in source.graph.node]
    assert written.metadata_props == source.metadata_props
    assert difference(run(source, {"x": image(1, 3, 8, 8)}), run(written, {"x": image(1, 3, 8, 8)})) == 0


def test_the_outline_holds_no_large_weights(tmp_path):
    onnx.save(model(256), tmp_path / "a.onnx")
    assert len(wire.outline(tmp_path / "a.onnx")) < (tmp_path / "a.onnx").stat().st_size / 4


def test_external_data_is_read_from_beside_the_file_and_lies_beside_the_slim_one(tmp_path):
    source = model()
    onnx.save(source, tmp_path / "a.onnx")
    for_outside = onnx.load(tmp_path / "a.onnx")
    onnx.save(for_outside, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    (tmp_path / "out").mkdir()
    slim_onnx(tmp_path / "e.onnx", tmp_path / "out" / "slim.onnx")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["slim.onnx", "slim.onnx.data"]
    written = tmp_path / "out" / "slim.onnx"
    assert difference(run(source, {"x": image(1, 3, 8, 8)}), run(written, {"x": image(1, 3, 8, 8)})) < 1e-5
    (tmp_path / "e.data").write_bytes(b"short")
    with pytest.raises(ModelLoadError, match=r"e\.data"):
        load_model(tmp_path / "e.onnx")


def test_weights_whose_location_is_said_to_be_the_default_are_there(tmp_path):
    source = model()
    for tensor in source.graph.initializer:
        tensor.data_location = onnx.TensorProto.DEFAULT  # onnxruntime's quantizer writes it out
    onnx.save(source, tmp_path / "a.onnx")
    slim_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    written = onnx.load(tmp_path / "b.onnx")
    assert difference(run(source, {"x": image(1, 3, 8, 8)}), run(written, {"x": image(1, 3, 8, 8)})) < 1e-5


def test_a_literal_without_numbers_is_refused(tmp_path):
    source = model()
    source.graph.initializer[1].ClearField("raw_data")
    onnx.save(source, tmp_path / "a.onnx")
    with pytest.raises(ModelLoadError, match=r"'first\.bias' has no numbers"):
        load_model(tmp_path / "a.onnx")


def test_what_the_file_says_of_itself_stays(tmp_path):
    source = model()
    zero(source, "first.weight", slice(3))
    zero(source, "first.bias", slice(3))
    onnx.save(source, tmp_path / "a.onnx")
    slim_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    before, after = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx")
    assert (after.producer_name, before.producer_name) == ("graphprune", "somebody")
    for field in ("doc_string", "ir_version", "metadata_props", "opset_import"):
        assert getattr(after, field) == getattr(before, field)
    assert [v.name for v in (*after.graph.input, *after.graph.output)] == [
        v.name for v in (*before.graph.input, *before.graph.output)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_a_corrupted_file_is_an_error_or_still_a_model(tmp_path, seed):
    rng = np.random.default_rng(seed)
    onnx.save(model(8), tmp_path / "a.onnx")
    data = bytearray((tmp_path / "a.onnx").read_bytes())
    if seed % 3 == 0:
        data = data[: rng.integers(1, len(data))]
    for at in rng.integers(0, len(data), 1 + seed % 8):
        data[at] = rng.integers(0, 256)
    (tmp_path / "a.onnx").write_bytes(data)
    try:
        load_model(tmp_path / "a.onnx")
        message = ""
    except ModelLoadError as error:
        message = str(error)
    assert "\n" not in message
    assert (tmp_path / "a.onnx").read_bytes() == bytes(data)

"""Files with operators, or numbers, that onnxruntime does not have: what of them is run, and what is said."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from builder import FLOAT, Builder, difference, image, run, shapes
from onnx import TensorProto, helper, numpy_helper

import graphprune.passes.onnx.slim as removal
from graphprune.errors import ModelLoadError, VerificationError
from graphprune.formats.runnable import runnable
from graphprune.runtime.onnx_session import open_session
from graphprune.slimming import slim_onnx


def detector(plugin="Selection", domain="other.runtime"):
    """Two heads whose results a plugin selects from; outputs are the plugin's and a map of features."""
    b = Builder(17)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="stem"))
    x = b.call("Relu", b.conv(x, 8, 8, name="body"))
    heads = [b.call("Flatten", b.conv(x, 8, n, 1, name=name), axis=2) for name, n in (("boxes", 4), ("scores", 5))]
    b.nodes.append(helper.make_node(plugin, heads, ["number", "found"], domain=domain, name="nms", keep=3))
    b.output("number", (1,), TensorProto.INT32)
    b.output("found", ("n", 3, 4))
    b.output(b.conv(x, 8, 2, 1, name="mask"), ("n", 2, 8, 8))
    return b.model()


def enclosed(sizes):
    """A plugin between convolutions, whose result has these sizes, as the file says."""
    b = Builder(17)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="before"))
    x = b.call("Relu", b.conv(x, 8, 8, name="into"))
    b.nodes.append(helper.make_node("Deform", [x], ["bent"], domain="other.runtime"))
    x = b.call("Relu", b.conv("bent", 8, 8, name="behind"))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    model = b.model()
    if sizes is not None:
        model.graph.value_info.append(helper.make_tensor_value_info("bent", FLOAT, sizes))
    return model


def test_what_goes_into_a_plugin_is_an_output_of_the_part_that_runs(tmp_path):
    onnx.save(detector(), tmp_path / "net.onnx")
    part = runnable(tmp_path / "net.onnx", "net.onnx", tmp_path)
    session = open_session(part.path)
    mask, boxes, scores = (output.name for output in session.get_outputs())
    assert (boxes, scores) == ("Selection_0.input_0", "Selection_0.input_1")
    assert mask == detector().graph.output[2].name
    (note,) = part.notes
    assert note == "other.runtime.Selection cannot be run by onnxruntime: compared is what goes into it"
    found = session.run(None, {"x": image(2, 3, 8, 8)})
    assert [value.shape for value in found] == [(2, 2, 8, 8), (8, 64), (10, 64)]


def test_a_file_that_runs_is_left_alone(tmp_path):
    b = Builder(17)
    b.output(b.conv(b.input((1, 3, 8, 8)), 3, 8), (1, 8, 8, 8))
    onnx.save(b.model(), tmp_path / "net.onnx")
    assert runnable(tmp_path / "net.onnx", "net.onnx", tmp_path).path == tmp_path / "net.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("domain", "plugin"), [("other.runtime", "Selection"), ("", "SelectionOfTheFuture"), ("com.microsoft", "NoSuchNms")]
)
def test_a_detector_with_a_plugin_is_slimmed(tmp_path, domain, plugin):
    source, target = tmp_path / "net.onnx", tmp_path / "slim.onnx"
    model = detector(plugin, domain)
    onnx.save(model, source)
    report = slim_onnx(source, target, ratio=0.5, importance="l1")
    slim = onnx.load(target)
    assert shapes(slim)["body.weight"] == (4, 4, 3, 3)
    (found,), (given,) = ([node for node in file.graph.node if node.name == "nms"] for file in (slim, model))
    for field in ("domain", "op_type", "input", "output", "attribute"):
        assert getattr(found, field) == getattr(given, field)
    name = f"{domain}.{plugin}".strip(".")
    assert report.unknown_operators == {name: 1}
    assert any(note.startswith(f"{name} cannot be run by onnxruntime") for note in report.not_compared)
    assert [path.name for path in tmp_path.iterdir() if path not in (source, target)] == []


def test_behind_a_plugin_of_known_sizes_channels_go_too_and_are_proven(tmp_path, monkeypatch):
    source, target = tmp_path / "net.onnx", tmp_path / "slim.onnx"
    onnx.save(enclosed(("n", 8, 8, 8)), source)
    report = slim_onnx(source, target, ratio=0.5)
    found = shapes(onnx.load(target))
    assert (found["before.weight"], found["into.weight"]) == ((4, 3, 3, 3), (8, 4, 3, 3))
    assert (found["behind.weight"], found["last.weight"]) == ((4, 8, 3, 3), (4, 4, 3, 3))
    assert report.not_compared == ("other.runtime.Deform cannot be run by onnxruntime: compared is what goes into it",)
    removed = []

    def wrong(graph, groups):  # a mistake of ours behind the plugin
        right(graph, groups)
        last = graph.front_end.model.graph.initializers["last.weight"]
        last.const_value = removal.ir.tensor(last.const_value.numpy() * np.float32(1.1), name=last.name)
        removed.append(last)

    right = removal.remove_groups
    monkeypatch.setattr(removal, "remove_groups", wrong)
    with pytest.raises(VerificationError, match="the slim file does not compute"):
        slim_onnx(source, tmp_path / "other.onnx", ratio=0.5)
    assert removed
    assert not (tmp_path / "other.onnx").exists()


def test_behind_a_plugin_of_unknown_sizes_nothing_goes_and_nothing_is_said_to_be_proven(tmp_path):
    source, target = tmp_path / "net.onnx", tmp_path / "slim.onnx"
    onnx.save(enclosed(None), source)
    report = slim_onnx(source, target, ratio=0.5)
    found = shapes(onnx.load(target))
    assert (found["before.weight"], found["into.weight"]) == ((4, 3, 3, 3), (8, 4, 3, 3))
    assert (found["behind.weight"], found["last.weight"]) == ((8, 8, 3, 3), (4, 8, 3, 3))
    assert "and nothing of what is computed from its results" in report.not_compared[0]


def test_where_nothing_is_left_to_compare_it_is_an_error(tmp_path):
    b = Builder(17)
    b.nodes.append(helper.make_node("Backbone", [b.input((1, 3, 8, 8))], ["features"], domain="other.runtime"))
    b.output(b.conv("features", 8, 4, name="last"), (1, 4, 8, 8))
    onnx.save(b.model(), tmp_path / "net.onnx")
    with pytest.raises(
        VerificationError, match=r"nothing can be compared: other\.runtime\.Backbone cannot be run"
    ) as caught:
        slim_onnx(tmp_path / "net.onnx", tmp_path / "slim.onnx")
    assert caught.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_numbers_without_kernels_are_compared_in_float32(tmp_path, kind):
    dtype = {TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.DOUBLE: np.float64}[kind]
    b = Builder(22)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8), dtype=kind), 3, 8, name="first"))
    x = b.call("Cast", b.call("Cast", x, to=FLOAT), to=kind)
    b.output(b.conv(x, 8, 4, name="second"), ("n", 4, 8, 8), kind)
    for tensor in b.literals:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    source, target = tmp_path / "net.onnx", tmp_path / "slim.onnx"
    onnx.save(b.model(), source)
    with pytest.raises(ModelLoadError, match="Could not find an implementation"):
        open_session(source)
    report = slim_onnx(source, target, ratio=0.5)
    slim = onnx.load(target)
    assert shapes(slim)["first.weight"] == (4, 3, 3, 3)
    assert {tensor.data_type for tensor in slim.graph.initializer} == {kind}
    assert len(report.not_compared) == 1
    assert "compared are both files computed in float32" in report.not_compared[0]


def test_a_kernel_that_is_missing_for_something_that_is_cut_is_the_reason_as_before(tmp_path):
    """A Resize of int16, say: what is cut must be proven, so it cannot be left out."""
    b = Builder(17)
    x = b.conv(b.input((1, 3, 8, 8)), 3, 4)
    whole = b.call("Cast", x, to=TensorProto.INT16)
    larger = b.call("Resize", whole, "", b.literal(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    b.output(b.conv(b.call("Cast", larger, to=FLOAT), 4, 2), (1, 2, 16, 16))
    onnx.save(b.model(), tmp_path / "net.onnx")
    with pytest.raises(ModelLoadError, match=r"net\.onnx: .*Resize"):
        slim_onnx(tmp_path / "net.onnx", tmp_path / "slim.onnx")
    assert not (tmp_path / "slim.onnx").exists()


def test_the_part_that_runs_computes_what_the_file_does(tmp_path):
    """Told by a file in which the plugin is an operator that there is."""
    model = detector()
    onnx.save(model, tmp_path / "net.onnx")
    part = onnx.load(runnable(tmp_path / "net.onnx", "net.onnx", tmp_path).path)
    whole = detector()
    del whole.graph.output[:2]
    (nms,) = (node for node in whole.graph.node if node.name == "nms")
    whole.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in nms.input)
    whole.graph.node.remove(nms)
    feeds = {"x": image(2, 3, 8, 8)}
    assert difference(run(whole, feeds), run(part, feeds)) == 0

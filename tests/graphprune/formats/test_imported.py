"""ONNX files as torch modules: proven against onnxruntime when they are read, and put back into themselves."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import graphprune as gp
from graphprune.formats.put_back import put_back
from graphprune.models import resnet20
from graphprune.passes.errors import UnsupportedModelError, VerificationError
from graphprune.passes.importer.operators import OPERATORS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A CIFAR ResNet20 as exported, with names of its own for producer and metadata."""
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("onnx") / "net.onnx"
    gp.export_onnx(resnet20().eval(), (torch.zeros(2, 3, 32, 32),), target)
    model = onnx.load(target)
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, target)
    return target


def numbers(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_load_model_gives_a_module_that_computes_the_same(path):
    module = gp.load_model(path)
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    session = __import__("onnxruntime").InferenceSession(path)
    (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), expected, atol=2e-5)
    assert module.source == path


def test_a_form_that_is_written_wrongly_is_found_when_the_file_is_read(path, monkeypatch):
    monkeypatch.setitem(OPERATORS, "Relu", lambda call: torch.nn.functional.leaky_relu(call.tensor(0), 0.1))
    with pytest.raises(
        VerificationError, match=r"net\.onnx: output '.*' read into torch differs from onnxruntime's by"
    ):
        gp.load_model(path)


def test_what_cannot_be_read_says_what_still_works(tmp_path):
    node = onnx.helper.make_node("Bernoulli", ["x"], ["y"])
    shape = ["n", 3, 8, 8]
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match="no torch form of Bernoulli: the file can be slimmed"):
        gp.load_model(tmp_path / "net.onnx")


def test_what_nothing_touched_keeps_every_bit(path, tmp_path):
    module = gp.load_model(path)
    same = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    assert put_back(path, same, tmp_path / "same.onnx") == 0
    before, after = onnx.load(path), onnx.load(tmp_path / "same.onnx")
    assert numbers(path).keys() == numbers(tmp_path / "same.onnx").keys()
    assert all(a.tobytes() == numbers(tmp_path / "same.onnx")[name].tobytes() for name, a in numbers(path).items())
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert before.graph.input == after.graph.input
    assert before.graph.output == after.graph.output
    assert before.opset_import == after.opset_import
    assert {p.key: p.value for p in after.metadata_props}["author"] == "somebody"


def test_numbers_that_were_learned_are_in_the_file(path, tmp_path):
    module = gp.load_model(path)
    name = next(name for name, value in module.named_parameters() if value.dim() == 4)
    fresh = module.state_dict()[name] + 1.0
    assert put_back(path, {name: fresh}, tmp_path / "learned.onnx") == 1
    found = numbers(tmp_path / "learned.onnx")
    np.testing.assert_array_equal(found[name], fresh.numpy())
    assert all(np.array_equal(a, found[other]) for other, a in numbers(path).items() if other != name)


def test_numbers_in_constant_nodes_and_in_half_precision_keep_their_place_and_type(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)
    nodes = [
        onnx.helper.make_node("Constant", [], ["kernel"], value=numpy_helper.from_array(weight)),
        onnx.helper.make_node("Cast", ["kernel"], ["full"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Gemm", ["x", "full"], ["y"], transB=1),
    ]
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", s]) for n, s in (("x", 3), ("y", 4))]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    module = gp.load_model(tmp_path / "net.onnx")
    (name,) = dict(module.named_parameters())
    put_back(tmp_path / "net.onnx", {name: module.state_dict()[name].float() + 0.5}, tmp_path / "new.onnx")
    held = onnx.load(tmp_path / "new.onnx").graph.node[0]
    assert held.op_type == "Constant"
    np.testing.assert_allclose(numpy_helper.to_array(held.attribute[0].t), weight + np.float16(0.5), atol=2e-3)
    assert held.attribute[0].t.data_type == onnx.TensorProto.FLOAT16


def test_an_empty_file_and_an_architecture_for_a_whole_file_are_one_line(path, tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(gp.ModelLoadError, match="is not an ONNX model"):
        gp.load_model(tmp_path / "empty.onnx")
    with pytest.raises(gp.UsageError, match="holds a whole model, not only its weights"):
        gp.load_model(path, arch="graphprune.models:resnet20")


def test_a_file_that_is_another_one_by_now_is_refused(path, tmp_path):
    with pytest.raises(VerificationError, match="has no literal nowhere"):
        put_back(path, {"nowhere": torch.zeros(3)}, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()

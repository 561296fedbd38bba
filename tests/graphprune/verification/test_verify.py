import json
import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from graphprune.errors import DataError, ModelLoadError, UnsupportedModelError, VerificationError
from graphprune.verification.verify import compare, explain, first_difference, require_equal, tolerance_of

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[BATCH,4] x) => (float[BATCH,3] scores, float[BATCH,5] hidden)
{ first = MatMul(x, w1) hidden = Relu(first) second = MatMul(hidden, w2) scores = Add(second, b) }"""


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (4, 5), "w2": (5, 3), "b": (3,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def net(values=None, batch="n", text=NET):
    model = onnx.parser.parse_model(text.replace("BATCH", str(batch)))
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in (values or weights()).items())
    return model.SerializeToString()


def changed(name, factor=1.5):
    values = weights()
    values[name] = values[name] * np.float32(factor)
    return net(values)


def samples(count=7, seed=3):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_a_model_equals_itself():
    result = require_equal(net(), net(), samples())
    assert [output.name for output in result.outputs] == ["scores", "hidden"]
    assert (result.worst.error, result.agreement, result.samples) == (0.0, None, 7)  # two outputs are no classes


@pytest.mark.parametrize(("factor", "equal"), [(1 + 1e-5, True), (1 + 1e-2, False), (-1.0, False)])
def test_a_changed_weight_is_seen_beyond_the_tolerance(factor, equal):
    assert compare(net(), changed("b", factor), samples()).equal is equal


def test_the_message_names_output_error_tolerance_and_first_difference():
    with pytest.raises(VerificationError) as caught:
        require_equal(net(), changed("w2"), samples(), rtol=1e-3, labels=("dense.onnx", "slim.onnx"))
    message = str(caught.value)
    assert re.match(
        r"slim\.onnx does not compute what dense\.onnx does: output 'scores' differs by 0\.\d+ of its scale, "
        r"0\.001 is tolerated; first difference inside: 'second' \(0\.\d+ of its scale\)$",
        message,
    )


@pytest.mark.parametrize(("name", "place"), [("w1", "'first'"), ("w2", "'second'"), ("b", "'scores'")])
def test_the_first_difference_is_the_first_in_the_graph(name, place):
    assert first_difference(net(), changed(name), samples()).startswith(place)


def test_no_difference_no_place():
    assert first_difference(net(), net(), samples()) is None


def test_nan_is_never_equal():
    values = weights()
    values["b"][1] = np.nan
    result = compare(net(values), net(values), samples())
    assert not result.equal
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["outputs"][0]["error"] is None
    with pytest.raises(VerificationError, match=r"'scores' holds NaN or infinity in the reference.*'scores' holds NaN"):
        require_equal(net(values), net(values), samples())


def test_another_shape_is_an_error_with_both_shapes():
    values = weights()
    values["w1"], values["w2"] = values["w1"][:, :4], values["w2"][:4]
    with pytest.raises(VerificationError, match="output 'hidden' has shape 7x4 where 7x5 is expected"):
        require_equal(net(), net(values), samples())


def test_other_numbers_of_outputs_cannot_be_compared():
    one = net(text=NET.replace(", float[BATCH,5] hidden)", ")"))
    with pytest.raises(VerificationError, match=r"has 1 outputs where .* has 2"):
        compare(net(), one, samples())


def test_outputs_are_matched_by_name_when_the_names_are_the_same():
    swapped = NET.replace(
        "(float[BATCH,3] scores, float[BATCH,5] hidden)", "(float[BATCH,5] hidden, float[BATCH,3] scores)"
    )
    assert compare(net(), net(text=swapped), samples()).equal


def test_a_slim_graph_is_aligned_on_the_channels_that_are_left():
    dense, slim = weights(), weights()
    dense["w1"][:, 2] = 0
    slim["w1"], slim["w2"] = np.delete(slim["w1"], 2, axis=1), np.delete(slim["w2"], 2, axis=0)
    text = NET.replace(", float[BATCH,5] hidden)", ")")
    assert compare(net(dense, text=text), net(slim, text=text), samples()).equal
    wrong = {**slim, "w1": np.delete(weights()["w1"], 1, axis=1)}
    place = first_difference(net(dense, text=text), net(wrong, text=text), samples())
    assert place.startswith("'first'")


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_fixed_batch_is_served_and_the_padding_is_not_counted(batch):
    result = compare(net(), net(batch=batch), samples(7))
    assert result.equal
    assert result.samples == 7
    values = weights()
    values["b"] = np.roll(values["b"], 1) * 9
    fixed = compare(net(), net(values, batch=batch), samples(7))
    free = compare(net(), net(values), samples(7))
    assert fixed.agreement == free.agreement
    assert fixed.worst.error == pytest.approx(free.worst.error)
    assert explain(fixed, net(), net(values, batch=batch), samples(7)).endswith("of its scale)")


def test_batches_do_not_change_the_result():
    whole = compare(net(), changed("w1"), samples(50))
    parts = compare(net(), changed("w1"), samples(50), batch_size=7)
    assert [o.worst_sample for o in whole.outputs] == [o.worst_sample for o in parts.outputs]
    assert whole.worst.error == pytest.approx(parts.worst.error, rel=1e-5)


def test_unoptimized_runs_count_as_well():
    assert compare(net(), net(), samples(), unoptimized=True).equal
    assert not compare(net(), changed("w2"), samples(), unoptimized=True).equal


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ones((2, 5), np.float32), "input 'x' is nx4, the data is 2x5"),
        (np.ones((2, 4), np.int64), "input 'x' is float32, the data is int64"),
        ((samples(), samples()), "takes 1 inputs, 2 were given"),
        (np.ones((0, 4), np.float32), "there is no input"),
        ((), "there is no input"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    with pytest.raises(DataError, match=message):
        compare(net(), net(), inputs)


def test_float64_data_is_cast():
    assert compare(net(), net(), samples().astype(np.float64)).equal


def test_a_scalar_input_stays_a_scalar():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 2] x, float s) => (float[n, 2] y) { y = Mul(x, s) }'
    ).SerializeToString()
    assert compare(model, model, (np.ones((3, 2), np.float32), np.float32(2).reshape(()))).equal


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="list is neither an ONNX model nor a torch module"):
        compare([], net(), samples())
    with pytest.raises(ModelLoadError, match="no such file"):
        compare(tmp_path / "none.onnx", net(), samples())


class Torch(nn.Module):
    """The network of NET."""

    def __init__(self):
        super().__init__()
        for name, value in weights().items():
            setattr(self, name, nn.Parameter(torch.from_numpy(value)))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        hidden = torch.relu(x @ self.w1)
        return {"scores": self.drop(hidden) @ self.w2 + self.b, "hidden": hidden}


def test_torch_and_onnx_are_compared_in_evaluation_mode():
    module = Torch().train()
    module.drop.eval()
    module.drop.train()
    assert require_equal(module, net(), torch.from_numpy(samples())).equal
    assert module.training
    assert module.drop.training


def test_inputs_a_torch_model_cannot_take_are_one_line():
    with pytest.raises(DataError, match=r"the torch module Torch does not run on inputs of 2x5: mat1 and mat2"):
        compare(Torch(), Torch(), np.ones((2, 5), np.float32))


def test_modes_of_submodules_survive_a_comparison():
    module = Torch().train()
    module.drop.eval()
    compare(module, net(), samples())
    assert module.training
    assert not module.drop.training


def test_torch_graphs_are_searched_node_by_node():
    one, other = torch.fx.symbolic_trace(Torch()), torch.fx.symbolic_trace(Torch())
    with torch.no_grad():
        other.w2.mul_(1.5)
    assert compare(one, Torch(), samples()).equal
    with pytest.raises(VerificationError, match="first difference inside: 'matmul_1'"):
        require_equal(one, other, samples())


def test_a_program_that_was_exported_in_training_is_compared_in_evaluation_mode():
    program = torch.export.export(Torch().train(), (torch.from_numpy(samples(2)),))
    assert compare(program, net(), samples(7)).equal


def test_exported_programs_can_be_compared_and_keep_to_their_batch():
    program = torch.export.export(Torch().eval(), (torch.from_numpy(samples(2)),))
    assert compare(program, net(), samples(7)).equal


@pytest.mark.parametrize(
    ("kept", "computed", "tolerance"),
    [
        ("FLOAT", "FLOAT", 1e-4),
        ("FLOAT16", "FLOAT16", 1e-2),
        ("BFLOAT16", "BFLOAT16", 8e-2),
        ("FLOAT16", "FLOAT", 1e-4),
    ],
)
def test_the_tolerance_is_that_of_the_numbers_that_a_file_computes_with(kept, computed, tolerance):
    weight = ir.tensor(np.ones((2, 2), ir.DataType[kept].numpy()), name="weight")
    value = ir.Value(name="weight", type=ir.TensorType(weight.dtype), const_value=weight)
    x = ir.Value(name="x")
    nodes = [] if kept == computed else [ir.node("Cast", [value], {"to": ir.DataType[computed]})]
    used = nodes[0].outputs[0] if nodes else value
    graph = ir.Graph(
        [x], [], nodes=[*nodes, ir.node("MatMul", [x, used])], initializers=[value], opset_imports={"": 18}
    )
    assert tolerance_of(ir.Model(graph, ir_version=10)) == tolerance

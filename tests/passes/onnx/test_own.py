"""Operators of other domains and functions in ONNX files, with a rule that was registered."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import difference, image, run, shapes
from onnx import numpy_helper

import graphprune as gp
from graphprune.formats.onnx_cost import onnx_cost
from graphprune.passes.channels import patterns
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import load_model

#: A slope for each channel, as a function of which one operator has no rule: channels go in and out of a sequence.
SLOPE = """
<domain: "com.example", opset_import: ["": 18]>
Slope (x, weight) => (y) {
  axes = Constant<value_ints=[1, 2]>()
  zero = Constant<value_float=0.0>()
  first = Constant<value_int=0>()
  w = Unsqueeze(weight, axes)
  scaled = Mul(x, w)
  positive = Greater(x, zero)
  chosen = Where(positive, x, scaled)
  all = SequenceConstruct(chosen)
  y = SequenceAt(all, first)
}
"""
#: Every second channel, by a shape that is an attribute.
SHUFFLE = """
<domain: "com.example", opset_import: ["": 18]>
Shuffle <apart, together> (x) => (y) {
  shape = Constant<value_ints: ints = @apart>()
  back = Constant<value_ints: ints = @together>()
  a = Reshape(x, shape)
  b = Transpose<perm=[0, 2, 1, 3, 4]>(a)
  y = Reshape(b, back)
}
"""


def network(middle, *functions, declared="", weights=(), opset=18):
    """Two convolutions with `middle` between `a` and `b`."""
    text = f"""
    <ir_version: 9, opset_import: ["": {opset}, "com.example": 1]>
    net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] out) {declared} {{
      a = Conv(x, first, bias)
      {middle}
      out = Conv(b, last)
    }}
    {"".join(functions)}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    sizes = {"first": (4, 3, 1, 1), "bias": (4,), "last": (2, 4, 1, 1), **dict(weights)}
    for name, shape in sizes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def kill(model, channel):
    for tensor in model.graph.initializer:
        if tensor.name in ("first", "bias"):
            array = numpy_helper.to_array(tensor).copy()
            array[channel] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.fixture
def slope():
    return lambda: gp.register_rule(
        "slope", patterns.per_channel("weight", zero=patterns.first_zero), onnx="com.example::Slope"
    )


def test_a_function_with_a_rule_is_taken_as_a_whole(tmp_path, slope):
    """Slim, from file to file: without the rule nothing that it touches goes."""
    path = tmp_path / "net.onnx"
    onnx.save(kill(network("b = com.example.Slope(a, weight)", SLOPE, weights=[("weight", (4,))]), 2), path)
    before = gp.slim_onnx(path, tmp_path / "without.onnx")
    assert before.removed_groups == 0
    assert before.unknown_operators
    with slope():
        report = gp.slim_onnx(path, tmp_path / "slim.onnx")
    assert report.removed_groups == 1
    assert report.unknown_operators == {}
    slim = onnx.load(tmp_path / "slim.onnx")
    assert [node.op_type for node in slim.graph.node] == ["Conv", "Slope", "Conv"]
    assert shapes(slim) == {"first": (3, 3, 1, 1), "bias": (3,), "weight": (3,), "last": (2, 3, 1, 1)}
    feeds = {"x": image(2, 3, 4, 4)}
    assert difference(run(path, feeds), run(tmp_path / "slim.onnx", feeds)) < 1e-5


def test_a_plan_and_a_ratio_cut_it_too(tmp_path, slope):
    path = tmp_path / "net.onnx"
    onnx.save(network("b = com.example.Slope(a, weight)", SLOPE, weights=[("weight", (4,))]), path)
    with slope():
        report = gp.slim_onnx(path, tmp_path / "slim.onnx", ratio=0.5)
        graph = trace_onnx(path)
    assert report.removed_groups == 2
    assert shapes(onnx.load(tmp_path / "slim.onnx"))["weight"] == (2,)
    assert {m.parameter for m in graph.groups[0].members} == {"first", "bias", "weight", "last"}


def test_a_function_without_a_rule_is_made_of_what_it_is_made_of(tmp_path):
    path = tmp_path / "net.onnx"
    body = '<domain: "com.example", opset_import: ["": 18]> Twice (x) => (y) { y = Add(x, x) }'
    onnx.save(network("b = com.example.Twice(a)", body), path)
    assert [node.op_type for node in load_model(path).graph] == ["Conv", "Add", "Conv"]
    with gp.register_rule("twice", patterns.elementwise(), onnx="com.example::Twice"):
        model = load_model(path)
        assert [node.op_type for node in model.graph] == ["Conv", "Twice", "Conv"]
        assert len(model.functions) == 1
        assert trace_onnx(model).n_groups == 4


def resize_shuffle(op, cut):
    """Both shapes are attributes; None leaves what it is."""
    kept = cut.kept("input", 1)
    if kept is None:
        return {}
    rows = int(kept.reshape(2, -1).any(axis=1).sum())
    return {"parts": [None, rows, None, None, None], "whole": [None, int(kept.sum()), None, None]}


def test_attributes_that_repeat_sizes_follow_under_their_own_names():
    model = network("b = com.example.Shuffle<apart=[-1, 2, 2, 4, 4], together=[-1, 4, 4, 4]>(a)", SHUFFLE)

    def shuffle(array, op):
        apart = array.reshape(-1, *op.attrs["parts"][1:])
        return np.swapaxes(apart, 1, 2).reshape(-1, *op.attrs["whole"][1:])

    def whole_rows(analysis, op):
        """Rows of the two by two that the channels are laid out as."""
        labels = analysis.axis(op.value("input"), 1).labels.reshape(2, 2)
        analysis.unite(labels, labels[:, :1])
        return patterns.moved(shuffle).couple(analysis, op)

    names = {"parts": "apart", "whole": "together"}
    with gp.register_rule(
        "shuffle", whole_rows, onnx="com.example::Shuffle", inputs=("input",), names=names, resize=resize_shuffle
    ):
        from graphprune.testing import Example, check_rule

        groups = ["first/0[0,1] bias/0[0,1] last/1[0,2]", "first/0[2,3] bias/0[2,3] last/1[1,3]"]
        example = Example(onnx=model, feeds={"x": image(2, 3, 4, 4)}, groups=groups)
        assert check_rule("shuffle", example).compared["cut equals mask"]


OPAQUE = "b = com.example.Opaque(a)"


@pytest.mark.parametrize(
    ("declared", "more", "groups"),
    [
        ("", {}, 0),
        ("<float[n, 4, 4, 4] b>", {}, 4),
        ("", {"shapes": lambda op: [op.value("input").shape]}, 4),
        ("", {"shapes": lambda op: []}, 0),
    ],
)
def test_sizes_are_those_that_the_file_or_the_rule_says(declared, more, groups):
    model = network(OPAQUE, declared=declared)
    same = lambda analysis, op: [Same(op)]  # noqa: E731
    with gp.register_rule("opaque", same, onnx="com.example::Opaque", inputs=("input",), **more):
        graph = trace_onnx(ir.from_proto(model))
    assert graph.n_groups == groups
    assert list(graph.unknown) == ([] if groups else ["com.example.Opaque of unknown sizes", "Conv of unknown sizes"])


def Same(op):
    return patterns.Value(op.shape, op.value("input").facets)


def test_more_inputs_than_the_rule_has_names_for_do_not_fit():
    model = network("b = com.example.Opaque(a, a)", declared="<float[n, 4, 4, 4] b>")
    with gp.register_rule("opaque", lambda a, op: [Same(op)], onnx="com.example::Opaque", inputs=("input",)):
        graph = trace_onnx(ir.from_proto(model))
    assert graph.unknown == {"com.example.Opaque that does not fit its inputs": 1}
    assert graph.n_groups == 0


def test_a_form_that_a_rule_does_not_cover_is_unknown():
    model = network("b = com.example.Opaque<mode=1>(a)", declared="<float[n, 4, 4, 4] b>")
    binding = patterns.Binding(covers=lambda op: op.attrs["mode"] == 0)
    with gp.register_rule("opaque", patterns.elementwise(), onnx={"com.example::Opaque": binding}):
        assert trace_onnx(ir.from_proto(model)).unknown == {"com.example.Opaque of this form": 1}


def test_the_cost_of_a_file_counts_what_the_rule_states():
    model = network(
        "b = com.example.Opaque(a, weight)", declared="<float[n, 4, 4, 4] b>", weights=[("weight", (4, 4, 3, 3))]
    )
    content = model.SerializeToString()
    assert "com.example.Opaque 'b': no formula for this operator" in onnx_cost(content).uncounted
    with gp.register_rule("opaque", patterns.convolution(), onnx="com.example::Opaque"):
        cost = onnx_cost(content)
        graph = trace_onnx(ir.from_proto(model))
    assert cost.macs == 16 * (3 * 4 + 4 * 4 * 9 + 4 * 2)
    assert cost.uncounted == ()
    assert graph.cost.macs(graph.all_kept()) == cost.macs
    assert cost.params == 4 * 3 + 4 + 4 * 4 * 9 + 2 * 4


def test_an_opaque_operator_in_a_branch_is_not_folded_with_it():
    """Nobody could compute the constant that is left of it."""
    text = """
    <ir_version: 9, opset_import: ["": 18, "com.example": 1]>
    net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] out) <float[n, 4, 4, 4] d> {
      a = Conv(x, first)
      b = Conv(a, inner)
      c = Conv(b, outer, bias)
      d = com.example.Opaque(c)
      e = Add(a, d)
      out = Conv(e, last)
    }
    """
    model = onnx.parser.parse_model(text)
    sizes = {"first": (4, 3, 1, 1), "inner": (5, 4, 1, 1), "outer": (4, 5, 1, 1), "bias": (4,), "last": (2, 4, 1, 1)}
    rng = np.random.default_rng(0)
    for name, shape in sizes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    with gp.register_rule("opaque", patterns.elementwise(), onnx="com.example::Opaque"):
        graph = trace_onnx(ir.from_proto(model))
    assert {s.name: s.bypassed for s in graph.sets} == {"first": False, "inner": False}

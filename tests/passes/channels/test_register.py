"""Rules for operators of one's own: one table, names, refusals, and the patterns in the words of the analysis."""

import sys

import numpy as np
import pytest

import graphprune as gp
from graphprune.passes.channels import patterns
from graphprune.passes.channels.analysis import Analysis, Cut, Op
from graphprune.passes.channels.patterns import Binding, Facet, Value
from graphprune.passes.channels.registry import RuleTable, kernel_libraries
from graphprune.passes.channels.rules import ATEN, ONNX, RULES, TABLE

KEEPS_ZERO = patterns.elementwise(patterns.first_zero)


def registered(coupling=KEEPS_ZERO, name="mine", **more):
    return gp.register_rule(name, coupling, **({} if more else {"torch": "mylib::mine"}), **more)


@pytest.mark.parametrize(
    ("torch", "key"),
    [
        ("mylib::mine", "mylib::mine"),
        ("mylib.mine", "mylib::mine"),
        ("mylib::mine.default", "mylib::mine.default"),
        ("mylib.mine.out", "mylib::mine.out"),
        ("aten::_sparse_mm", "_sparse_mm"),
    ],
)
def test_torch_names_as_torch_and_the_reports_write_them(torch, key):
    with registered(torch=torch) as made:
        assert ATEN[key][0] is made.rule
        assert repr(made) == f"<rule 'mine' for {key}>"
    assert key not in ATEN


@pytest.mark.parametrize(
    ("onnx", "key"),
    [
        ("com.example::Mine", "com.example.Mine"),
        ("com.example.Mine", "com.example.Mine"),
        ("mine::Mine", "mine.Mine"),
        ("Mine", "Mine"),
        ("ai.onnx::Mine", "Mine"),
        ("::Mine", "Mine"),
    ],
)
def test_onnx_names_as_onnx_and_the_reports_write_them(onnx, key):
    with registered(onnx=onnx) as made:
        assert ONNX[key][0] is made.rule
    assert key not in ONNX


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"torch": "mine"}, "'mine' is no operator of a torch library: write mylib::op, or mylib::op.overload"),
        ({"torch": "a::b.c.d"}, "is no operator of a torch library"),
        ({"torch": ""}, "is no operator of a torch library"),
        ({"onnx": "com.example::"}, "is no ONNX operator: write com.example::Op"),
        ({"onnx": "com..example::Op"}, "is no ONNX operator"),
        ({"torch": [], "onnx": []}, "the rule 'mine' is for no operator: name one with torch= or onnx="),
        ({"torch": "aten::relu"}, "two rules for relu: 'activation, zero at zero' and 'mine'"),
        (
            {"torch": "aten::relu.default"},
            "for relu.default, of which all forms have the rule 'activation, zero at zero'",
        ),
        ({"onnx": ["com.example::New", "Conv"]}, "two rules for Conv: 'convolution' and 'mine'"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_one_line_and_leaves_nothing(names, text):
    before = dict(ATEN), dict(ONNX)
    with pytest.raises(gp.RuleError) as caught:
        registered(**names)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == (ATEN, ONNX)


def test_an_operator_has_one_rule_until_that_is_removed():
    made = registered()
    with pytest.raises(gp.RuleError, match="two rules for mylib::mine: 'mine' and 'other'"):
        registered(name="other")
    with pytest.raises(gp.RuleError, match="of which all forms have the rule 'mine'"):
        registered(name="other", torch="mylib::mine.default")
    made.remove()
    made.remove()  # once more is no mistake
    with registered(name="other", torch=["mylib::mine.default", "mylib::mine"]) as other:
        made.remove()  # somebody else's now
        assert TABLE.torch_rule("mylib::mine.default", "mylib::mine")[0] is other.rule
        assert TABLE.torch_rule("mylib::mine.special", "mylib::mine")[0] is other.rule
    assert TABLE.torch_rule("mylib::mine") is None


def test_our_own_rules_and_registered_ones_lie_in_one_table():
    assert TABLE.onnx is ONNX
    assert TABLE.aten is ATEN
    with registered() as made:
        assert made.rule not in RULES
        assert TABLE.torch_rule("mylib::mine")[0] is made.rule
        assert TABLE.torch_rule("conv2d")[0] in RULES


def test_a_binding_for_each_operator_adds_to_what_all_have_in_common():
    with registered(
        patterns.convolution(),
        torch={"mylib::mine": Binding(names={"groups": "parts"})},
        onnx={"com.example::Mine": Binding(fixed={"groups": 2}, kernels="/own.so")},
        names={"weight": "kernel"},
        kernels="lib.so",
    ) as made:
        of_torch, of_onnx = made.rule.aten["mylib::mine"], made.rule.onnx["com.example.Mine"]
        assert of_torch.names == {"weight": "kernel", "groups": "parts"}
        assert of_torch.inputs == of_onnx.inputs == ("input", "weight", "bias")
        assert of_torch.fixed == {"groups": 1, "transposed": False}
        assert of_onnx.fixed == {"groups": 2, "transposed": False}
        assert kernel_libraries() == ["/own.so"]
        assert made.rule.resize is not None
    assert kernel_libraries() == []


# -- couplings ------------------------------------------------------------------------------------


@pytest.fixture
def mine(sketch):
    """Registers a coupling for `mylib::mine` and applies it to what a convolution gives and parameters."""
    made = []

    def call(coupling, shape=(1, 4, 4, 4), parameters=(), head=True, **attributes):
        made.append(registered(coupling))
        x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
        own = {name: sketch.parameter(name, *sizes) for name, sizes in dict(parameters).items()}
        made_of = made[-1].rule.aten["mylib::mine"].fixed
        y = sketch.call("mylib::mine", shape, input=x, **own, **{**made_of, **attributes})
        return sketch.graph(sketch.conv(y, "head", 2) if head else y)

    yield call
    for each in made:
        each.remove()


def test_elementwise(mine, groups_of):
    graph = mine(KEEPS_ZERO)
    assert groups_of(graph)[1] == "stem.weight/0[1] stem.bias/0[1] head.weight/1[1]"
    assert graph.n_groups == 4


@pytest.mark.parametrize(
    ("zero", "exact"),
    [(patterns.first_zero, True), (patterns.any_zero, True), (patterns.all_zero, True), (patterns.never_zero, False)],
)
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 4, 1, 1)])
def test_per_channel(sketch, mine, groups_of, zero, exact, shape):
    graph = mine(patterns.per_channel("scale", zero=zero), parameters={"scale": shape}, head=False)
    assert graph.n_groups == 0  # an output
    sketch = type(sketch)()
    x = sketch.conv(sketch.input(1, 3, 4, 4), "stem", 4)
    y = sketch.call("mylib::mine", x.shape, input=x, scale=sketch.parameter("scale", *shape))
    graph = sketch.graph(sketch.call("sum", (1, 4, 4), input=y, dim=[1]))
    dim = shape.index(4)
    assert groups_of(graph) == [f"stem.weight/0[{i}] stem.bias/0[{i}] scale/{dim}[{i}]" for i in range(4)]
    assert bool(graph.exact.all()) == exact


def test_one_parameter_for_all_channels_and_one_that_cannot_be_cut(mine, groups_of):
    graph = mine(patterns.per_channel("scale"), parameters={"scale": (1,)})
    assert groups_of(graph)[0] == "stem.weight/0[0] stem.bias/0[0] head.weight/1[0]"


def test_a_parameter_with_more_than_one_number_a_channel_freezes(mine):
    graph = mine(patterns.per_channel("scale"), parameters={"scale": (4, 4)})
    assert graph.n_groups == 0
    assert "its scale cannot be cut: mylib::mine at line 1" in [f.reason for f in graph.frozen]


def test_convolution_with_its_cost_and_groups(sketch, mine, groups_of):
    graph = mine(patterns.convolution(), (1, 6, 4, 4), {"weight": (6, 4, 1, 1), "bias": (6,)})
    assert groups_of(graph)[0] == "stem.weight/0[0] stem.bias/0[0] weight/1[0]"
    assert groups_of(graph)[4] == "weight/0[0] bias/0[0] head.weight/1[0]"
    assert graph.cost.macs(graph.all_kept()) == 16 * (3 * 4 + 4 * 6 + 6 * 2)


def test_groups_follow(sketch, mine):
    graph = mine(patterns.convolution(), parameters={"weight": (4, 1, 3, 3), "bias": (4,)}, groups=4)
    assert sketch.resized(graph, 1, [0]) == {"groups": 3}


def test_linear(sketch, groups_of):
    with registered(patterns.linear()):
        x = sketch.linear(sketch.input(1, 5, 3), "first", 4)
        weight = sketch.parameter("weight", 2, 4)
        graph = sketch.graph(sketch.call("mylib::mine", (1, 5, 2), input=x, weight=weight))
    assert groups_of(graph) == [f"first.weight/0[{i}] first.bias/0[{i}] weight/1[{i}]" for i in range(4)]


def test_pooling(mine):
    graph = mine(patterns.pooling(), (1, 4, 2, 2))
    assert graph.n_groups == 4


def test_a_movement_is_run_on_the_labels(mine, groups_of):
    def swapped(array, op):
        return np.concatenate([array[:, op.attrs["first"] :], array[:, : op.attrs["first"]]], axis=1)

    graph = mine(patterns.moved(swapped), first=1)
    assert groups_of(graph)[0] == "stem.weight/0[0] stem.bias/0[0] head.weight/1[3]"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda array, op: np.zeros((1, 4, 4, 4), np.int64), "elements that are none of its input's"),
        (lambda array, op: array[:, :2], "its function gives the shape (1, 2, 4, 4), and the operator (1, 4, 4, 4)"),
        (lambda array, op: array / 2, "elements that are none of its input's"),
    ],
)
def test_a_movement_that_makes_things_up_is_refused(mine, function, text):
    with pytest.raises(gp.RuleError) as caught:
        mine(patterns.moved(function))
    assert str(caught.value).startswith("the rule 'mine' fails at mylib::mine (line 1): ValueError: its function gives")
    assert text in str(caught.value)


def test_a_refusal_gives_its_reason(mine):
    graph = mine(patterns.refused("sorts channels"))
    assert "sorts channels: mylib::mine at line 1" in [f.reason for f in graph.frozen]


def out_of_shape(analysis: Analysis, op: Op):
    return [Value((1, 5, 4, 4))]


def laid_out_wrongly(analysis: Analysis, op: Op):
    return [Value(op.shape, (Facet(np.zeros((1, 3, 1, 1), np.int64), np.zeros((1, 3, 1, 1), np.bool_)),))]


@pytest.mark.parametrize(
    ("coupling", "text"),
    [
        (lambda analysis, op: op.inputs["kernel"], "fails at mylib::mine (line 1): KeyError: 'kernel'"),
        (lambda analysis, op: None, "at mylib::mine (line 1) gives no list of values"),
        (lambda analysis, op: [3], "gives no list of values"),
        (out_of_shape, "gives a result of shape (1, 5, 4, 4), and the operator one of (1, 4, 4, 4)"),
        (laid_out_wrongly, "lays channels out as (1, 3, 1, 1) in a result of shape (1, 4, 4, 4)"),
    ],
)
def test_a_coupling_that_is_no_coupling_is_told_in_one_line(mine, coupling, text):
    with pytest.raises(gp.RuleError) as caught:
        mine(coupling)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resize_that_fails_is_told_in_one_line():
    def resize(op: Op, cut: Cut):
        return {"sizes": cut.kept("input", 1).sum()}

    with registered(KEEPS_ZERO, torch="mylib::mine", resize=resize) as made:
        op = Op("mylib.mine.default", "mine", "net.py:3", {}, {}, ())
        with pytest.raises(gp.RuleError, match=r"the rule 'mine' fails at mylib.mine.default \(net.py:3\): Attribute"):
            made.rule.resize(op, Cut({}, ()))


# -- rules of installed packages -------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package whose entry point is a module with this text."""

    def install(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        folder = tmp_path / f"{name}_dist-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[graphprune.rules.of.a.test]\nmine = {name}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


RULE = """
import graphprune as gp
from graphprune.passes.channels import patterns
held = gp.register_rule("plugged", patterns.elementwise(), torch="mylib::plugged", onnx="com.example::Plugged")
"""


def test_rules_of_an_installed_package_come_with_the_first_operator_that_has_none(package, monkeypatch, caplog):
    package("plugged_rules", RULE)
    monkeypatch.setattr(TABLE, "_group", "graphprune.rules.of.a.test")
    assert TABLE.torch_rule("conv2d") is not None
    assert "plugged_rules" not in sys.modules
    with caplog.at_level("INFO", "graphprune"):
        rule, _ = TABLE.onnx_rule("com.example.Plugged")
    assert rule.name == "plugged"
    assert "operator rules of plugged_rules-dist (plugged_rules)" in caplog.text
    assert TABLE.torch_rule("mylib::plugged")[0] is rule
    sys.modules.pop("plugged_rules").held.remove()


def test_rules_that_cannot_be_imported_are_named_and_left_out(package, monkeypatch, caplog):
    package("broken_rules", "import graphprune_of_another_world\n")
    table = RuleTable(RULES, "graphprune.rules.of.a.test")
    assert table.onnx_rule("com.example.Plugged") is None
    assert "the operator rules of broken_rules-dist (broken_rules) are left out: No module named" in caplog.text
    caplog.clear()
    assert table.onnx_rule("com.example.Other") is None
    assert caplog.text == ""  # once is enough

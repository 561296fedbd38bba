"""The suite for rules: a right one passes, and each of the oracles can fail."""

import numpy as np
import pytest
import torch
from small import Net, each, image, onnx_of
from torch import Tensor, library, nn

import graphprune as gp
from graphprune.passes.channels import patterns
from graphprune.passes.channels.patterns import Binding, Value
from graphprune.testing import Example, check_rule, written_out
from graphprune.testing.onnx_network import OnnxNetwork
from graphprune.testing.oracles import torch_equals_onnx
from graphprune.testing.torch_network import TorchNetwork

X = image(2, 3, 4, 4)


@library.custom_op("suite::slope", mutates_args=())
def slope(x: Tensor, weight: Tensor) -> Tensor:
    """A relu that leaks in each channel by itself."""
    return torch.where(x > 0, x, x * weight[:, None, None])


@slope.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def in_numpy(x, weight):
    return np.where(x > 0, x, x * weight[:, None, None])


@library.custom_op("suite::bell", mutates_args=())
def bell(x: Tensor) -> Tensor:
    """One at zero."""
    return torch.exp(-x * x)


@bell.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def network(**changed):
    parts = {"first": nn.Conv2d(3, 4, 1), "slope": torch.zeros(4), "last": nn.Conv2d(4, 2, 1), **changed}
    return Net(lambda net, x: net.last(torch.ops.suite.slope(net.first(x), net.slope)), **parts)


KERNELS = {"suite::Slope": in_numpy}
GROUPS = each(4, "first.weight/0", "first.bias/0", "slope/0", "last.weight/1")
NODES = [
    ("Conv", "x first.weight first.bias", "a", {}),
    ("suite::Slope", "a slope", "b", {}),
    ("Conv", "b last.weight last.bias", "out", {}),
]


def examples(net=None, nodes=NODES, **more):
    """The network in torch, and in ONNX."""
    net = net or network()
    in_onnx = {"onnx": onnx_of(net, X, *nodes), "feeds": {"x": X[0].numpy()}, "kernels": KERNELS}
    more = {"groups": GROUPS, **more}
    return {
        "torch": Example(net, X, **more),
        "ONNX": Example(**in_onnx, **more),
        "both": Example(net, X, **in_onnx, **more),
    }


@pytest.fixture
def register():
    """Registers a rule for the slope, for as long as the test runs."""
    made = []

    def add(coupling, **more):
        names = {"torch": "suite::slope", "onnx": "suite::Slope", "inputs": ("input", "weight")}
        more = {**names, "shapes": lambda op: [op.value("input").shape], **more}
        made.append(gp.register_rule("slope", coupling, **more))
        return made[-1]

    yield add
    for registration in made:
        registration.remove()


def fails(rule, example, text):
    with pytest.raises(gp.RuleError) as caught:
        check_rule(rule, example)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message


RIGHT = patterns.per_channel("weight", zero=patterns.first_zero)


def test_a_right_rule_passes_all_four(register):
    rule = register(RIGHT)
    compared = check_rule(rule, examples()["both"]).compared
    assert list(compared) == ["cut equals mask", "torch equals ONNX", "groups", "a refusal has a reason"]
    assert all(compared.values())
    assert check_rule("slope", *examples().values()).compared["groups"] == 12
    assert check_rule(rule.rule, examples()["torch"]).compared["torch equals ONNX"] == 0
    assert "torch equals ONNX: nothing compared" in str(check_rule(rule, examples()["ONNX"]))


def shifted(analysis, op):
    """Off by one: each slope is taken for that of the next channel."""
    x, weight = analysis.axis(op.value("input"), 1), analysis.axis(op.value("weight"), 0)
    analysis.unite(x.labels, np.roll(weight.labels, 1))
    return [Value(op.shape, op.value("input").facets)]


def alone(analysis, op):
    """Unites nothing."""
    return [Value(op.shape, op.value("input").facets)]


def alone_and_left(analysis, op):
    """Unites nothing, and says that this needs nothing more."""
    for facet in op.value("weight").facets:
        analysis.drop(facet.labels)
    return [Value(op.shape, op.value("input").facets)]


WRONG_GROUPS = {
    "wrong dimension": (patterns.per_channel("weight", zero=patterns.first_zero, dim=2), False),
    "off by one": (shifted, True),
    "unites nothing": (alone, False),
    "unites nothing, knowingly": (alone_and_left, False),
}


@pytest.mark.parametrize("vocabulary", ["torch", "ONNX"])
@pytest.mark.parametrize("kind", WRONG_GROUPS)
def test_a_cut_that_is_not_the_mask_is_found(register, kind, vocabulary):
    """Even where the wrong groups are the expected ones."""
    coupling, is_shifted = WRONG_GROUPS[kind]
    rule = register(coupling)
    if is_shifted:
        order = [3, 0, 1, 2]
        groups = [f"first.weight/0[{i}] first.bias/0[{i}] slope/0[{order[i]}] last.weight/1[{i}]" for i in range(4)]
    else:
        groups = each(4, "first.weight/0", "first.bias/0", "last.weight/1")
    fails(rule, examples(groups=groups)[vocabulary], "cut equals mask: in the ")
    fails(rule, examples()[vocabulary], "groups: a group of the ")


def test_a_false_word_on_zeros_is_found():
    """Where the next layer has weights, masked and cut agree all the same."""
    parts = {"first": nn.Conv2d(3, 4, 1), "last": nn.Conv2d(4, 2, 1)}
    net = Net(lambda net, x: net.last(torch.ops.suite.bell(net.first(x))), **parts)
    example = Example(net, X, groups=each(4, "first.weight/0", "first.bias/0", "last.weight/1"))
    with gp.register_rule("bell", patterns.elementwise(patterns.first_zero), torch="suite::bell") as rule:
        fails(rule, example, "is called zero there, and is not")
    with gp.register_rule("bell", patterns.elementwise(), torch="suite::bell") as rule:
        assert check_rule(rule, example).compared["cut equals mask"]


def test_inexact_groups_are_cut_and_run():
    """A sum over channels that are not zero: nothing to be equal to, but sizes must go together."""
    net = Net(lambda net, x: torch.ops.suite.bell(net.first(x)).sum(1), first=nn.Conv2d(3, 4, 1))
    example = Example(net, X, groups=each(4, "first.weight/0", "first.bias/0"))
    with gp.register_rule("bell", patterns.elementwise(), torch="suite::bell") as rule:
        assert check_rule(rule, example).compared["cut equals mask"] == 6

    def wider(analysis, op):
        analysis.inexact(op.value("input").facets[0].labels, op, "a statistic")
        return [Value(op.shape, op.value("input").facets)]

    net = network()
    with gp.register_rule("slope", wider, torch="suite::slope", inputs=("input", "weight")) as rule:
        groups = each(4, "first.weight/0", "first.bias/0", "last.weight/1")
        fails(
            rule, Example(net, X, groups=groups), "cut equals mask: in the torch network without the groups 0, the cut"
        )


def test_other_groups_than_expected_are_found(register):
    rule = register(RIGHT)
    fails(rule, examples(groups=GROUPS[:3])["torch"], "groups: a group of the torch network is not expected")
    fails(rule, examples(groups=[*GROUPS, "more/0[0]"])["ONNX"], "is expected, and is none: more/0[0]")
    fails(rule, examples(groups=[*GROUPS, GROUPS[0]])["torch"], "5 groups are expected, the torch network has 4")


def test_torch_and_onnx_that_couple_differently_are_found(register):
    def in_one(analysis, op):
        """Frozen in one vocabulary."""
        if op.attrs["frozen"]:
            for value in op.values():
                analysis.freeze_value(value, op, "is not understood")
            return [Value(op.shape)]
        return RIGHT.couple(analysis, op)

    def spelled(frozen):
        return Binding(inputs=("input", "weight"), fixed={"frozen": frozen})

    both = register(in_one, torch={"suite::slope": spelled(False)}, onnx={"suite::Slope": spelled(True)})
    fails(both, examples()["both"], "cut equals mask: the ONNX network has no channels around the operator")
    both.remove()

    def reversed_in_onnx(analysis, op):
        """The slopes the other way round in one vocabulary."""
        x, weight = analysis.axis(op.value("input"), 1), analysis.axis(op.value("weight"), 0)
        analysis.unite(x.labels, weight.labels[::-1] if op.attrs["frozen"] else weight.labels)
        return [Value(op.shape, tuple(f.with_zero(False) for f in op.value("input").facets))]

    register(reversed_in_onnx, torch={"suite::slope": spelled(False)}, onnx={"suite::Slope": spelled(True)})
    networks = TorchNetwork(network(), X), OnnxNetwork(onnx_of(network(), X, *NODES), [X[0].numpy()], KERNELS)
    with pytest.raises(gp.RuleError, match=r"couple channels differently: only torch has the group .* slope/0\[0\]"):
        torch_equals_onnx(*networks, 0)


def test_torch_and_onnx_that_compute_differently_are_found(register):
    rule = register(RIGHT)
    net = network()
    kernels = {"suite::Slope": lambda x, weight: in_numpy(x, -weight)}
    fails(
        rule,
        Example(net, X, onnx_of(net, X, *NODES), groups=GROUPS, kernels=kernels),
        "torch and ONNX: output 0 differs",
    )
    other = {f"my.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}
    nodes = [
        (kind, " ".join(n if len(n) == 1 else f"my.{n}" for n in read.split()), *more) for kind, read, *more in NODES
    ]
    named = Example(net, X, onnx_of(other, X, *nodes), groups=GROUPS, kernels=KERNELS)
    fails(rule, named, "torch equals ONNX: torch and ONNX have no group in common")


def test_a_refusal_needs_a_reason(register):
    def silent(analysis, op):
        for value in op.values():
            for facet in value.facets:
                analysis.space.freeze(facet.labels, None)
                analysis.drop(facet.labels)
        return [Value(op.shape)]

    rule = register(silent)
    fails(rule, examples(groups=[])["torch"], "a refusal has a reason: channels that suite.slope.default")
    rule.remove()
    rule = register(patterns.refused("slopes are sorted"))
    refused = examples(groups=[], refused="slopes are sorted")
    for example in refused.values():
        assert check_rule(rule, example).compared["a refusal has a reason"]
    fails(rule, examples(groups=None, refused="slopes are red")["ONNX"], "stays because it 'slopes are red'")


def test_a_judgement_that_would_compare_nothing_is_none(register):
    rule = register(RIGHT)
    same = network()
    with torch.no_grad():
        same.slope.fill_(0.25)
    fails(rule, examples(same)["torch"], "channels of slope along dimension 0 have the same numbers")
    dead = network()
    with torch.no_grad():
        dead.last.weight.mul_(1e-30)
        dead.last.bias.zero_()
    fails(rule, examples(dead)["torch"], "the outputs of the torch network are zero")
    only = Net(
        lambda net, x: torch.ops.suite.slope(net.first(x), net.slope), first=nn.Conv2d(3, 4, 1), slope=torch.zeros(4)
    )
    fails(rule, Example(only, X, groups=[]), "has no channels around the operator that could be removed")
    with pytest.raises(gp.UsageError, match="needs an example"):
        check_rule(rule)
    rule.remove()
    fails("slope", examples(groups=[])["torch"], "no operator of this rule; without a rule are: suite.slope.default")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "an example needs a network"),
        ({"module": nn.ReLU(), "groups": []}, "needs inputs="),
        ({"onnx": "a.onnx", "groups": []}, "needs feeds="),
        ({"onnx": "a.onnx", "feeds": {}}, "say what is expected"),
    ],
)
def test_an_example_that_says_too_little_is_refused(arguments, text):
    with pytest.raises(gp.UsageError, match=text):
        Example(**arguments)


def test_groups_written_out():
    net = Net(lambda net, x: net.last(net.first(x)), first=nn.Conv2d(3, 2, 1), last=nn.Conv2d(2, 2, 1))
    assert written_out(gp.trace(net, X)) == each(2, "first.weight/0", "first.bias/0", "last.weight/1")

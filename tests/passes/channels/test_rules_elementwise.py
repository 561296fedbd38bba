import numpy as np
import pytest

from graphprune.passes.channels.value import Value


def one_conv(sketch):
    return sketch.conv(sketch.input(1, 3, 4, 4), "a", 2)


def scalar(number: float | None) -> Value:
    """A literal; None for one whose number is not known."""
    return Value((), constant=True, data=None if number is None else np.float32(number))


def two_convs(sketch, channels: int = 2):
    x = sketch.input(1, 3, 4, 4)
    return sketch.conv(x, "a", channels), sketch.conv(x, "b", channels)


def summed(sketch, y):
    """A sum over channels: exact only while they are zero."""
    return sketch.graph(sketch.call("sum", (1, 4, 4), input=y, dim=[1]))


@pytest.mark.parametrize("kind", ["add", "sub", "maximum", "mul"])
def test_channels_that_meet_are_one_group(sketch, groups_of, kind):
    a, b = two_convs(sketch)
    graph = sketch.graph(sketch.conv(sketch.call(kind, a.shape, input=a, other=b), "head", 2))
    assert groups_of(graph) == [
        f"a.weight/0[{i}] a.bias/0[{i}] b.weight/0[{i}] b.bias/0[{i}] head.weight/1[{i}]" for i in range(2)
    ]


def test_zeros_of_sums_and_products(sketch):
    a, b = two_convs(sketch)
    half = sketch.call("sigmoid", b.shape, input=b)
    assert summed(sketch, sketch.call("mul", a.shape, input=a, other=half)).exact.all()


def test_a_sum_with_something_not_zero_is_not_zero(sketch):
    a, b = two_convs(sketch)
    half = sketch.call("sigmoid", b.shape, input=b)
    graph = summed(sketch, sketch.call("add", a.shape, input=a, other=half))
    assert not graph.exact.any()
    assert "sums over channels that are not zero: sum at line 4" in graph.why_inexact(0)


@pytest.mark.parametrize(
    ("kind", "attrs", "exact"),
    [
        ("relu", {}, True),
        ("gelu", {}, True),
        ("tanh", {}, True),
        ("dropout", {}, True),
        ("sqrt", {}, True),
        ("sigmoid", {}, False),
        ("softplus", {}, False),
        ("exp", {}, False),
        ("cos", {}, False),
        ("hardsigmoid", {}, False),
        ("ge", {"other": 0.0}, False),
        ("log", {}, False),
        ("add", {"other": 0.5}, False),
        ("add", {"other": 0}, True),
        ("mul", {"other": 3.0}, True),
        ("div", {"other": 3.0}, True),
        ("clamp", {"min": 0.0, "max": 6.0}, True),
        ("clamp", {"min": None, "max": 6.0}, True),
        ("clamp", {"min": 0.1, "max": None}, False),
        ("clamp_min", {"min": -1.0}, True),
        ("clamp_max", {"max": -1.0}, False),
        ("hardtanh", {"min_val": -1.0, "max_val": 1.0}, True),
        ("hardtanh", {"min_val": 0.5, "max_val": 1.0}, False),
        ("threshold", {"threshold": 0.1, "value": 20.0}, False),
        ("threshold", {"threshold": -0.1, "value": 20.0}, True),
        ("threshold", {"threshold": 0.1, "value": 0.0}, True),
        ("pow", {"exponent": 2}, True),
        ("pow", {"exponent": 0}, False),
        ("pow", {"exponent": -1}, False),
        ("masked_fill", {"value": 0}, True),
        ("masked_fill", {"value": -1e9}, False),
        ("masked_fill", {"value": scalar(0)}, True),
        ("masked_fill", {"value": scalar(1)}, False),
        ("clamp", {"min": scalar(0), "max": scalar(6)}, True),
        ("clamp", {"min": scalar(1)}, False),
        ("clamp", {"min": scalar(None)}, False),
        ("maximum", {"other": scalar(0)}, True),
        ("maximum", {"other": scalar(-1)}, True),
        ("maximum", {"other": scalar(1)}, False),
        ("maximum", {"other": scalar(None)}, False),
        ("minimum", {"other": scalar(6)}, True),
        ("minimum", {"other": scalar(-6)}, False),
        ("add", {"other": scalar(0)}, True),
        ("add", {"other": scalar(1)}, False),
        ("zeros_like", {}, True),
        ("ones_like", {}, False),
    ],
)
def test_is_zero_kept(sketch, kind, attrs, exact):
    a = one_conv(sketch)
    graph = summed(sketch, sketch.call(kind, a.shape, input=a, **attrs))
    assert graph.n_groups == 2
    assert graph.exact.all() == exact


@pytest.mark.parametrize("kind", ["log", "reciprocal", "rsqrt", "acosh"])
def test_functions_without_a_value_at_zero_are_inexact_whatever_follows(sketch, kind):
    """The consumer's zeros do not help: 0 * inf is not a number."""
    a = one_conv(sketch)
    graph = sketch.graph(sketch.conv(sketch.call(kind, a.shape, input=a), "head", 2))
    assert not graph.exact.any()
    assert graph.why_inexact(0) == f"has no value at zero: {kind} at line 1"


def test_a_divisor_that_becomes_zero_is_inexact(sketch):
    a, b = two_convs(sketch)
    graph = sketch.graph(sketch.conv(sketch.call("div", a.shape, input=a, other=b), "head", 2))
    assert not graph.exact.any()


def test_a_divisor_that_stays_positive_is_exact(sketch):
    a, b = two_convs(sketch)
    b = sketch.call("add", b.shape, input=sketch.call("abs", b.shape, input=b), other=1e-5)
    assert summed(sketch, sketch.call("div", a.shape, input=a, other=b)).exact.all()


def test_parameters_of_every_rank_broadcast(sketch, groups_of):
    x = sketch.conv(sketch.input(1, 3, 4, 4), "a", 2, bias=False)
    x = sketch.call("mul", x.shape, input=x, other=sketch.parameter("scale", 2, 1, 1))
    x = sketch.call("add", x.shape, input=x, other=sketch.parameter("shift", 1, 2, 1, 1))
    x = sketch.call("mul", x.shape, input=x, other=sketch.parameter("gain"))
    graph = sketch.graph(sketch.conv(x, "head", 2, bias=False))
    assert groups_of(graph) == [f"a.weight/0[{i}] scale/0[{i}] shift/1[{i}] head.weight/1[{i}]" for i in range(2)]


def test_a_tensor_that_cannot_be_cut_freezes_what_it_meets(sketch):
    a = one_conv(sketch)
    graph = sketch.graph(sketch.conv(sketch.call("add", a.shape, input=a, other=sketch.input(1, 2, 4, 4)), "head", 2))
    assert graph.n_groups == 0
    assert "meets a tensor that cannot be cut: add at line 1" in [f.reason for f in graph.frozen]


def test_a_tensor_with_one_channel_freezes_nothing(sketch):
    a = one_conv(sketch)
    gate = sketch.conv(sketch.input(1, 3, 4, 4), "gate", 1)
    graph = sketch.graph(sketch.conv(sketch.call("mul", a.shape, input=gate, other=a), "head", 2))
    assert graph.n_groups == 2


def test_facets_along_different_dimensions_stay_apart(sketch):
    """(N, C, 1) times (N, 1, T): channels and tokens are cut independently of each other."""
    a = sketch.call("unsqueeze", (1, 3, 1), input=sketch.linear(sketch.input(1, 4), "a", 3))
    b = sketch.call("unsqueeze", (1, 1, 5), input=sketch.linear(sketch.input(1, 4), "b", 5))
    y = sketch.call("mul", (1, 3, 5), input=a, other=b)
    assert [f.dims for f in y.facets] in ([(1,), (2,)], [(2,), (1,)])
    graph = sketch.graph(sketch.linear(sketch.call("sum", (1, 3), input=y, dim=[2]), "head", 2))
    assert graph.n_groups == 8
    assert graph.exact.all()


def test_expand_as_takes_the_channels_of_what_it_is_expanded_to(sketch):
    a, b = two_convs(sketch)
    one = sketch.call("amax", (1, 1, 4, 4), input=b, dim=[1], keepdim=True)
    wide = sketch.call("expand_as", a.shape, input=one, other=a)
    graph = sketch.graph(sketch.conv(wide, "head", 2))
    assert [m.parameter for m in graph.groups[0].members] == ["a.weight", "a.bias", "head.weight"]


def test_a_cast_to_the_precision_of_another_tensor_couples_nothing(sketch, groups_of):
    a, b = two_convs(sketch)
    y = sketch.call("type_as", a.shape, input=a, other=sketch.call("amax", (1, 2), input=b, dim=[2, 3]))
    graph = sketch.graph(sketch.conv(y, "head", 2), sketch.conv(b, "aux", 2))
    assert groups_of(graph)[0] == "a.weight/0[0] a.bias/0[0] head.weight/1[0]"
    assert graph.n_groups == 4


def test_copied_indices_are_still_known(sketch):
    index = Value((2,), constant=True, data=np.array([1, 0]))
    for kind in ("clone", "detach", "lift_fresh_copy", "alias", "contiguous"):
        index = sketch.call(kind, (2,), input=index)
    assert index.data.tolist() == [1, 0]


def test_copy_takes_the_zeros_of_its_source(sketch):
    a, b = two_convs(sketch)
    half = sketch.call("sigmoid", b.shape, input=b)
    assert not summed(sketch, sketch.call("copy", a.shape, input=a, src=half)).exact.any()


@pytest.mark.parametrize(("other", "exact"), [(0.0, True), (1.0, False), (scalar(0), True), (scalar(1), False)])
def test_where_is_zero_when_both_branches_are(sketch, other, exact):
    a = one_conv(sketch)
    flag = sketch.call("gt", (1, 1, 4, 4), input=sketch.input(1, 1, 4, 4), other=0.5)
    y = sketch.call("where", a.shape, condition=flag, self=a, other=other)
    assert summed(sketch, y).exact.all() == exact


@pytest.mark.parametrize(("low", "high", "exact"), [(0.0, 6.0, True), (1.0, 6.0, False), (-1.0, -0.5, False)])
def test_onnx_clip_reads_its_limits_from_constants(sketch, low, high, exact):
    a = one_conv(sketch)
    clipped = sketch.onnx("Clip", a.shape, input=a, min=scalar(low), max=scalar(high))
    assert summed(sketch, clipped).exact.all() == exact


@pytest.mark.parametrize(("kind", "limit"), [("Max", 0), ("Min", 6)])
@pytest.mark.parametrize("first", [True, False])
def test_onnx_extrema_with_a_number_keep_zero_in_any_order(sketch, kind, limit, first):
    a = one_conv(sketch)
    operands = [scalar(limit), a] if first else [a, scalar(limit)]
    assert summed(sketch, sketch.onnx(kind, a.shape, input=operands)).exact.all()


def lines(sketch, channels: int = 5, each: int = 2):
    """Some numbers for each channel, (1, channels, each), from one linear layer."""
    x = sketch.linear(sketch.input(1, 3), "fc", channels * each)
    return sketch.call("view", (1, channels, each), input=x, shape=[1, channels, each])


@pytest.mark.parametrize("kind", ["parameter", "literal", "input"])
def test_numbers_that_all_channels_have_in_common_leave_them_apart(sketch, groups_of, kind):
    """(1, C, k) times (k,): the k numbers of a channel go together, and what is k numbers stays."""
    factor = {"parameter": lambda: sketch.parameter("k", 2), "literal": lambda: Value((2,), constant=True)}
    x = lines(sketch)
    y = sketch.call("mul", x.shape, input=x, other=factor.get(kind, lambda: sketch.input(2))())
    graph = sketch.graph(sketch.linear(sketch.call("amax", (1, 5), input=y, dim=[2]), "head", 2))
    pairs = [f"{2 * i},{2 * i + 1}" for i in range(5)]
    assert groups_of(graph) == [f"fc.weight/0[{p}] fc.bias/0[{p}] head.weight/1[{i}]" for i, p in enumerate(pairs)]


def test_a_parameter_goes_with_what_leaves_more_channels_free(sketch, groups_of):
    """(1, heads, d) times (d,), as the scale of a normalized head: d of them are more than the heads."""
    x = lines(sketch, channels=2, each=4)
    y = sketch.call("mul", x.shape, input=x, other=sketch.parameter("scale", 4))
    graph = sketch.graph(sketch.linear(sketch.call("amax", (1, 4), input=y, dim=[1]), "head", 2))
    assert groups_of(graph)[0] == "fc.weight/0[0,4] fc.bias/0[0,4] scale/0[0] head.weight/1[0]"
    assert graph.n_groups == 4

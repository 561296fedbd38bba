import pytest

from graphprune.passes.channels.rules.einsum import spell_out


def test_linear(sketch, groups_of):
    graph = sketch.graph(sketch.linear(sketch.relu(sketch.linear(sketch.input(1, 3), "a", 2)), "b", 2))
    assert groups_of(graph) == [
        "a.weight/0[0] a.bias/0[0] b.weight/1[0]",
        "a.weight/0[1] a.bias/0[1] b.weight/1[1]",
    ]
    assert graph.cost.macs(graph.all_kept()) == 3 * 2 + 2 * 2


def test_linear_of_a_vector(sketch, groups_of):
    w, v = sketch.parameter("a.weight", 2, 3), sketch.parameter("b.weight", 4, 2)
    x = sketch.call("linear", (2,), input=sketch.input(3), weight=w)
    assert groups_of(sketch.graph(sketch.call("linear", (4,), input=x, weight=v))) == [
        "a.weight/0[0] b.weight/1[0]",
        "a.weight/0[1] b.weight/1[1]",
    ]


def test_flatten_before_linear_couples_every_position(sketch, groups_of):
    x = sketch.conv(sketch.input(1, 1, 2, 2), "c", 2, bias=False)
    x = sketch.call("flatten", (1, 8), input=x)
    assert groups_of(sketch.graph(sketch.linear(x, "fc", 3))) == [
        "c.weight/0[0] fc.weight/1[0,1,2,3]",
        "c.weight/0[1] fc.weight/1[4,5,6,7]",
    ]


def test_a_row_per_position_is_no_channel(sketch):
    """Columns are channels; rows of a product of two activations are tokens that came in with the input."""
    a = sketch.linear(sketch.input(1, 5, 3), "a", 4)
    b = sketch.call("transpose", (1, 4, 5), input=sketch.linear(sketch.input(1, 5, 3), "b", 4), dim0=1, dim1=2)
    y = sketch.call("matmul", (1, 5, 5), input=a, other=b)
    graph = sketch.graph(y)
    assert graph.n_groups == 4
    assert [(m.parameter, m.dim) for m in graph.groups[0].members] == [
        ("a.weight", 0),
        ("a.bias", 0),
        ("b.weight", 0),
        ("b.bias", 0),
    ]
    assert graph.exact.all()
    assert graph.cost.macs(graph.all_kept()) == 2 * 5 * 3 * 4 + 5 * 5 * 4


def test_a_sum_of_products_that_are_not_zero_is_inexact(sketch):
    a = sketch.linear(sketch.input(1, 5, 3), "a", 4)
    b = sketch.linear(sketch.input(1, 5, 3), "b", 4)
    a, b = (sketch.call("sigmoid", v.shape, input=v) for v in (a, b))
    b = sketch.call("transpose", (1, 4, 5), input=b, dim0=-1, dim1=-2)
    graph = sketch.graph(sketch.call("bmm", (1, 5, 5), input=a, other=b))
    assert not graph.exact.any()
    assert graph.why_inexact(0) == "sums over channels that are not zero: bmm at line 5"


def test_a_product_with_something_that_cannot_be_cut(sketch):
    x = sketch.linear(sketch.input(1, 5, 3), "a", 4)
    graph = sketch.graph(sketch.call("matmul", (1, 5, 2), input=x, other=sketch.input(1, 4, 2)))
    assert graph.n_groups == 0
    assert "is multiplied with a tensor that cannot be cut: matmul at line 1" in [f.reason for f in graph.frozen]


def test_gemm_and_addmm_read_the_same_weights_from_both_sides(sketch, groups_of):
    w, b = sketch.parameter("w", 4, 3), sketch.parameter("b", 4)
    x = sketch.onnx("Gemm", (1, 4), input=sketch.input(1, 3), other=w, bias=b, transB=1)
    v, c = sketch.parameter("v", 4, 2), sketch.parameter("c", 2)
    y = sketch.call("addmm", (1, 2), input=x, other=v, bias=c)
    assert groups_of(sketch.graph(y)) == [f"w/0[{i}] b/0[{i}] v/0[{i}]" for i in range(4)]


def attention(sketch, heads: int, size: int, kind: str):
    x = sketch.input(1, 5, 3)
    parts = []
    for name in ("q", "k", "v"):
        y = sketch.linear(x, name, heads * size)
        y = sketch.call("view", (1, 5, heads, size), input=y, shape=[1, 5, heads, size])
        parts.append(sketch.call("transpose", (1, heads, 5, size), input=y, dim0=1, dim1=2))
    q, k, v = parts
    if kind == "fused":
        y = sketch.call("scaled_dot_product_attention", q.shape, query=q, key=k, value=v)
    else:
        k = sketch.call("transpose", (1, heads, size, 5), input=k, dim0=-1, dim1=-2)
        y = sketch.call("matmul", (1, heads, 5, 5), input=q, other=k)
        y = sketch.call("softmax", y.shape, input=y, dim=-1)
        y = sketch.call("matmul", q.shape, input=y, other=v)
    y = sketch.call("transpose", (1, 5, heads, size), input=y, dim0=1, dim1=2)
    y = sketch.call("reshape", (1, 5, heads * size), input=y, shape=[1, 5, heads * size])
    return sketch.graph(sketch.linear(y, "out", 3))


@pytest.mark.parametrize("kind", ["fused", "by hand"])
def test_attention_with_more_channels_than_heads_loses_channels(sketch, groups_of, kind):
    graph = attention(sketch, heads=2, size=3, kind=kind)
    pairs = ["[0,3]", "[1,4]", "[2,5]"]
    assert groups_of(graph) == [
        *(f"q.weight/0{p} q.bias/0{p} k.weight/0{p} k.bias/0{p}" for p in pairs),
        *(f"v.weight/0{p} v.bias/0{p} out.weight/1{p}" for p in pairs),
    ]
    assert graph.exact.all()
    products = 2 * 2 * 5 * 5 * 3
    assert graph.cost.macs(graph.all_kept()) == 3 * 5 * 3 * 6 + products + 5 * 6 * 3


@pytest.mark.parametrize("kind", ["fused", "by hand"])
def test_attention_with_more_heads_than_channels_loses_heads(sketch, groups_of, kind):
    graph = attention(sketch, heads=3, size=2, kind=kind)
    whole = ["[0,1]", "[2,3]", "[4,5]"]
    names = ("q.weight/0", "q.bias/0", "k.weight/0", "k.bias/0", "v.weight/0", "v.bias/0", "out.weight/1")
    assert groups_of(graph) == [" ".join(name + head for name in names) for head in whole]
    assert graph.exact.all()
    kept = graph.all_kept()
    kept[0] = False
    assert graph.cost.macs(kept) == 3 * 5 * 3 * 4 + 2 * 2 * 5 * 5 * 2 + 5 * 4 * 3


@pytest.mark.parametrize(("scale", "heads", "changes"), [(None, 1, {"scale": 0.5}), (0.3, 1, {}), (None, 4, {})])
def test_the_default_scale_of_attention_is_that_of_the_size_before_the_cut(sketch, scale, heads, changes):
    size = 4 if heads == 1 else 2  # four heads of two lose heads, which changes no scale
    x = sketch.linear(sketch.input(1, 5, 3), "qkv", heads * size)
    x = sketch.call("view", (1, 5, heads, size), input=x, shape=[1, 5, heads, size])
    x = sketch.call("transpose", (1, heads, 5, size), input=x, dim0=1, dim1=2)
    y = sketch.call("scaled_dot_product_attention", x.shape, query=x, key=x, value=x, scale=scale)
    graph = sketch.graph(sketch.call("amax", (1, 5), input=y, dim=[1, 3]))
    assert graph.n_groups == 4
    assert sketch.resized(graph, 3, [0]) == changes


def test_keys_that_were_summed_over_cannot_go(sketch):
    """Labels along the key's positions meet a softmax over them."""
    x = sketch.call("transpose", (1, 3, 5), input=sketch.input(1, 5, 3), dim0=1, dim1=2)
    tokens = sketch.call("transpose", (1, 6, 3), input=sketch.linear(x, "tokens", 6), dim0=1, dim1=2)
    q = sketch.input(1, 5, 3)
    graph = sketch.graph(sketch.call("scaled_dot_product_attention", q.shape, query=q, key=tokens, value=tokens))
    assert graph.n_groups == 0
    assert any(f.reason.startswith("softmax over the keys' positions") for f in graph.frozen)


def grouped_queries(sketch, fused: bool, heads: int = 4, kv_heads: int = 2, size: int = 3):
    """q (heads), k and v (fewer heads), each by a linear layer of its own."""
    x = sketch.input(1, 5, 3)
    parts = []
    for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        y = sketch.call("view", (1, 5, n, size), input=sketch.linear(x, name, n * size), shape=[1, 5, n, size])
        y = sketch.call("transpose", (1, n, 5, size), input=y, dim0=1, dim1=2)
        if not fused and n != heads:
            shape = (1, heads, 5, size)
            y = sketch.call("repeat_interleave.self_int", shape, input=y, repeats=heads // n, dim=1)
        parts.append(y)
    q, k, v = parts
    kind = "scaled_dot_product_attention"
    y = sketch.call(kind, (1, heads, 5, size), query=q, key=k, value=v, enable_gqa=fused)
    y = sketch.call("transpose", (1, 5, heads, size), input=y, dim0=1, dim1=2)
    y = sketch.call("reshape", (1, 5, heads * size), input=y, shape=[1, 5, heads * size])
    return sketch.graph(sketch.linear(y, "out", 3))


@pytest.mark.parametrize("fused", [True, False])
def test_queries_that_share_keys_agree_with_them_on_what_goes(sketch, groups_of, fused):
    """Four heads of queries, two of keys, three channels in each: settled one by one, they would not agree."""
    graph = grouped_queries(sketch, fused)
    q, kv = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]], [[0, 3], [1, 4], [2, 5]]
    q, kv = ([str(pick).replace(" ", "") for pick in picks] for picks in (q, kv))
    assert groups_of(graph) == [
        *(f"q.weight/0{a} q.bias/0{a} k.weight/0{b} k.bias/0{b}" for a, b in zip(q, kv, strict=True)),
        *(f"v.weight/0{b} v.bias/0{b} out.weight/1{a}" for a, b in zip(q, kv, strict=True)),
    ]
    assert graph.exact.all()


@pytest.mark.parametrize("fused", [True, False])
def test_whole_heads_take_the_queries_that_share_them_along(sketch, groups_of, fused):
    sketch.analysis.whole_heads = True
    graph = grouped_queries(sketch, fused)
    assert groups_of(graph)[0] == (
        "q.weight/0[0,1,2,3,4,5] q.bias/0[0,1,2,3,4,5] k.weight/0[0,1,2] k.bias/0[0,1,2] v.weight/0[0,1,2] "
        "v.bias/0[0,1,2] out.weight/1[0,1,2,3,4,5]"
    )
    assert graph.n_groups == 2


def test_one_key_for_all_heads_goes_with_the_same_channel_of_each(sketch, groups_of):
    x = sketch.input(1, 5, 3)
    q = sketch.call("view", (1, 5, 3, 2), input=sketch.linear(x, "q", 6), shape=[1, 5, 3, 2])
    q = sketch.call("transpose", (1, 3, 5, 2), input=q, dim0=1, dim1=2)
    k = sketch.call("transpose", (1, 2, 5), input=sketch.linear(x, "k", 2), dim0=1, dim1=2)
    k = sketch.call("unsqueeze", (1, 1, 2, 5), input=k, dim=1)
    graph = sketch.graph(sketch.call("matmul", (1, 3, 5, 5), input=q, other=k))
    assert groups_of(graph) == [
        f"q.weight/0{a} q.bias/0{a} k.weight/0{b} k.bias/0{b}" for a, b in (("[0,2,4]", "[0]"), ("[1,3,5]", "[1]"))
    ]


@pytest.mark.parametrize("fused", [True, False])
def test_whole_heads_of_queries_go_and_the_keys_that_all_share_stay(sketch, groups_of, fused):
    sketch.analysis.whole_heads = True
    x = sketch.input(1, 5, 3)
    q = sketch.call("view", (1, 5, 3, 2), input=sketch.linear(x, "q", 6), shape=[1, 5, 3, 2])
    q = sketch.call("transpose", (1, 3, 5, 2), input=q, dim0=1, dim1=2)
    k, v = (sketch.call("unsqueeze", (1, 1, 5, 2), input=sketch.linear(x, name, 2), dim=1) for name in ("k", "v"))
    if fused:
        y = sketch.call("scaled_dot_product_attention", (1, 3, 5, 2), query=q, key=k, value=v)
    else:
        k = sketch.call("transpose", (1, 1, 2, 5), input=k, dim0=2, dim1=3)
        y = sketch.call("softmax", (1, 3, 5, 5), input=sketch.call("matmul", (1, 3, 5, 5), input=q, other=k), dim=-1)
        y = sketch.call("matmul", (1, 3, 5, 2), input=y, other=v)
    y = sketch.call("transpose", (1, 5, 3, 2), input=y, dim0=1, dim1=2)
    y = sketch.call("reshape", (1, 5, 6), input=y, shape=[1, 5, 6])
    graph = sketch.graph(sketch.linear(y, "out", 3))
    heads = ("[0,1]", "[2,3]", "[4,5]")
    assert groups_of(graph) == [f"q.weight/0{head} q.bias/0{head} out.weight/1{head}" for head in heads]
    assert graph.exact.all()
    assert any(f.reason.startswith("heads go as a whole") and "v.weight" in f.parameters for f in graph.frozen)


def test_a_table_that_all_heads_read_may_stay_whole_while_heads_go(sketch):
    """Three heads of two channels: the heads are more, and the parameter loses nothing."""
    q = sketch.call("view", (1, 5, 3, 2), input=sketch.linear(sketch.input(1, 5, 3), "q", 6), shape=[1, 5, 3, 2])
    q = sketch.call("transpose", (1, 3, 5, 2), input=q, dim0=1, dim1=2)
    y = sketch.call("matmul", (1, 3, 5, 4), input=q, other=sketch.parameter("table", 2, 4))
    graph = sketch.graph(sketch.call("sum", (1, 5, 4), input=y, dim=[1]))
    assert [(m.parameter, m.indices) for m in graph.groups[0].members] == [("q.weight", (0, 1)), ("q.bias", (0, 1))]
    assert graph.n_groups == 3


def test_what_never_goes_does_not_hold_what_shares_its_dimension(sketch):
    """Heads that cannot be cut and channels of a head, made one dimension: the channels are free."""
    x = sketch.input(1, 5, 3)
    scores = sketch.linear(sketch.input(1, 5, 5, 2), "mix", 2)
    scores = sketch.call("permute", (1, 2, 5, 5), input=scores, dims=[0, 3, 1, 2])
    v = sketch.call("view", (1, 5, 2, 3), input=sketch.linear(x, "v", 6), shape=[1, 5, 2, 3])
    v = sketch.call("transpose", (1, 2, 5, 3), input=v, dim0=1, dim1=2)
    y = sketch.call("matmul", (1, 2, 5, 3), input=scores, other=v)
    y = sketch.call("transpose", (1, 5, 2, 3), input=y, dim0=1, dim1=2)
    y = sketch.call("reshape", (1, 5, 6), input=y, shape=[1, 5, 6])
    graph = sketch.graph(sketch.linear(y, "out", 3))
    assert [group_set.name for group_set in graph.sets] == ["v"]
    assert graph.n_groups == 3
    assert any(f.parameters == ("mix.weight", "mix.bias") for f in graph.frozen)


def test_of_rows_and_columns_that_become_one_dimension_the_more_may_go(sketch, groups_of):
    """A Gram matrix, flattened: every element is of a row and of a column; not both can be cut."""
    a, b = sketch.linear(sketch.input(1, 5, 3), "a", 2), sketch.linear(sketch.input(1, 5, 3), "b", 3)
    a = sketch.call("transpose", (1, 2, 5), input=a, dim0=1, dim1=2)
    y = sketch.call("flatten", (1, 6), input=sketch.call("matmul", (1, 2, 3), input=a, other=b), start_dim=1)
    graph = sketch.graph(sketch.linear(y, "out", 2))
    assert groups_of(graph) == [f"b.weight/0[{i}] b.bias/0[{i}] out.weight/1[{i},{i + 3}]" for i in range(3)]
    reasons = {f.parameters: f.reason for f in graph.frozen}
    assert reasons["a.weight", "a.bias"].startswith("shares a dimension with other channels: flatten at ")


def test_einsum_by_letters(sketch, groups_of):
    a, b = sketch.parameter("a", 3, 4), sketch.parameter("b", 4, 2)
    x = sketch.call("einsum", (1, 4), equation="nc,ck->nk", tensors=[sketch.input(1, 3), a])
    y = sketch.call("einsum", (1, 2), equation="nk, kd -> nd", tensors=[x, b])
    graph = sketch.graph(y)
    assert groups_of(graph) == [f"a/1[{i}] b/0[{i}]" for i in range(4)]
    assert graph.cost.macs(graph.all_kept()) == 3 * 4 + 4 * 2


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("nc,ck->nk", [2, 2], (["nc", "ck"], "nk")),
        ("...ij, jk -> ...ik", [4, 2], (["ABij", "jk"], "ABik")),
        ("a...,...->a...", [3, 1], (["aAB", "B"], "aAB")),
        ("ij,jk", [2, 2], (["ij", "jk"], "ik")),
        ("kb,ba", [2, 2], (["kb", "ba"], "ak")),
        ("...j,j", [2, 1], (["Aj", "j"], "A")),
        ("ij->", [2], (["ij"], "")),
        ("A...,B->AB...", [2, 1], (["AC", "B"], "ABC")),
        ("ii->i", [2], None),
        ("ij,jk->ik", [2], None),
        ("ij->i", [3], None),
    ],
)
def test_every_form_of_an_equation_is_spelled_out(equation, ranks, expected):
    assert spell_out(equation, ranks) == expected


def test_einsum_of_sizes_that_are_repeated(sketch, groups_of):
    """A size of 1 meets any other: nothing is frozen for it."""
    x = sketch.linear(sketch.input(1, 5, 3), "a", 2)
    y = sketch.call("einsum", (1, 5, 2), equation="btc,bsc->btc", tensors=[x, sketch.input(1, 1, 1)])
    assert groups_of(sketch.graph(sketch.linear(y, "b", 3))) == [
        f"a.weight/0[{i}] a.bias/0[{i}] b.weight/1[{i}]" for i in (0, 1)
    ]


def test_a_product_of_matrices_names_its_set_after_who_makes_it(sketch):
    """The weight of a matmul is (in, out)."""
    x = sketch.call("matmul", (1, 4), input=sketch.input(1, 3), other=sketch.parameter("first", 3, 4))
    graph = sketch.graph(sketch.call("matmul", (1, 2), input=x, other=sketch.parameter("second", 4, 2)))
    (group_set,) = graph.sets
    assert (group_set.name, group_set.layers, group_set.outputs) == ("first", ("first",), (("first", 1, 1),))
    assert [f.parameters for f in graph.frozen] == [("second",)]


def test_einsum_of_another_form_is_frozen(sketch):
    x = sketch.linear(sketch.input(4, 3), "a", 4)
    graph = sketch.graph(sketch.call("einsum", (4,), equation="ii->i", tensors=[x]))
    assert graph.n_groups == 0
    assert any("an einsum of this form has no rule" in f.reason for f in graph.frozen)

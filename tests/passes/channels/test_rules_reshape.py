import numpy as np
import pytest


def stem(sketch, channels: int, size: int = 4):
    return sketch.conv(sketch.input(1, 3, size, size), "c", channels, bias=False)


def ends(sketch, y):
    return sketch.graph(sketch.conv(y, "head", 2, bias=False))


def test_shuffle_by_view_transpose_view(sketch, groups_of):
    """(2, 3) read by columns: rows are united, and the head sees them in the new order."""
    x = stem(sketch, 6)
    x = sketch.call("view", (1, 2, 3, 4, 4), input=x, shape=[1, 2, 3, 4, 4])
    x = sketch.call("transpose", (1, 3, 2, 4, 4), input=x, dim0=1, dim1=2)
    x = sketch.call("reshape", (1, 6, 4, 4), input=x, shape=[1, -1, 4, 4])
    graph = ends(sketch, x)
    assert groups_of(graph) == [
        "c.weight/0[0,3] head.weight/1[0,1]",
        "c.weight/0[1,4] head.weight/1[2,3]",
        "c.weight/0[2,5] head.weight/1[4,5]",
    ]
    assert sketch.resized(graph, 1, [0, 2]) == {"shape": [None, None, 1, None, None]}
    assert sketch.resized(graph, 3, [0, 2]) == {"shape": [None, 2, None, None]}
    assert sketch.resized(graph, 3, []) == {}


@pytest.mark.parametrize("kind", ["channel_shuffle", "native_channel_shuffle"])
def test_channel_shuffle_is_the_same_in_one_operator(sketch, groups_of, kind):
    x = sketch.call(kind, (1, 6, 4, 4), input=stem(sketch, 6), groups=2)
    assert groups_of(ends(sketch, x)) == [
        "c.weight/0[0,3] head.weight/1[0,1]",
        "c.weight/0[1,4] head.weight/1[2,3]",
        "c.weight/0[2,5] head.weight/1[4,5]",
    ]


def test_of_two_layouts_with_as_many_groups_the_longer_dimension_is_kept(sketch, groups_of):
    """Rows {a a b b} and {c d e f}: two groups either way, but uniting rows would leave nothing to cut."""
    x = stem(sketch, 2)
    x = sketch.call("repeat_interleave.self_int", (1, 4, 4, 4), input=x, repeats=2, dim=1)
    y = sketch.conv(sketch.input(1, 3, 4, 4), "d", 4, bias=False)
    y = sketch.call("cat", (1, 8, 4, 4), tensors=[x, y], dim=1)
    y = sketch.call("view", (1, 2, 4, 4, 4), input=y, shape=[1, 2, 4, 4, 4])
    graph = ends(sketch, sketch.call("sum", (1, 4, 4, 4), input=y, dim=[1]))
    assert groups_of(graph) == [
        "c.weight/0[0] d.weight/0[0,1] head.weight/1[0,1]",
        "c.weight/0[1] d.weight/0[2,3] head.weight/1[2,3]",
    ]


def test_flatten_and_back(sketch):
    x = sketch.call("flatten", (1, 64), input=stem(sketch, 4))
    x = sketch.call("unflatten", (1, 4, 4, 4), input=x, dim=1, sizes=[4, 4, 4])
    graph = ends(sketch, x)
    assert graph.n_groups == 4
    assert sketch.resized(graph, 2, [1]) == {"sizes": [3, None, None]}


def test_channels_folded_into_the_batch(sketch):
    """Cut there, the batch dimension of the folded tensor gets shorter."""
    x = sketch.call("reshape", (4, 1, 4, 4), input=stem(sketch, 4), shape=[4, 1, 4, 4])
    x = sketch.call("avg_pool2d", (4, 1, 2, 2), input=x)
    x = sketch.call("reshape", (1, 4, 2, 2), input=x, shape=[1, 4, 2, 2])
    graph = ends(sketch, x)
    assert graph.n_groups == 4
    assert sketch.resized(graph, 1, [0]) == {"shape": [3, None, None, None]}


@pytest.mark.parametrize(
    ("kind", "attrs", "order"),
    [
        ("permute", {"dims": [0, 2, 3, 1]}, (0, 2, 3, 1)),
        ("permute", {"dims": [0, -2, -1, 1]}, (0, 2, 3, 1)),
        ("transpose", {"dim0": 1, "dim1": -1}, (0, 3, 2, 1)),
        ("swapaxes", {"axis0": -1, "axis1": 1}, (0, 3, 2, 1)),
        ("movedim", {"source": 1, "destination": -1}, (0, 2, 3, 1)),
        ("movedim", {"source": [1, 0], "destination": [0, 1]}, (1, 0, 2, 3)),
        ("movedim", {"source": [-1, 1], "destination": [1, 2]}, (0, 3, 1, 2)),
        ("mT", {}, (0, 1, 3, 2)),
        ("numpy_T", {}, (3, 2, 1, 0)),
    ],
)
def test_permutations(sketch, kind, attrs, order):
    sizes = (1, 6, 4, 5)
    x = sketch.conv(sketch.input(1, 3, 4, 5), "c", 6)
    y = sketch.call(kind, tuple(sizes[d] for d in order), input=x, **attrs)
    assert y.facets[0].dims == (order.index(1),)
    real = np.empty(sizes).transpose(order)
    assert y.shape == real.shape


def test_expand_carries_labels_of_the_other_dimensions(sketch):
    x = sketch.call("adaptive_avg_pool2d", (1, 4, 1, 1), input=stem(sketch, 4))
    x = sketch.call("expand", (1, 4, 4, 4), input=x, shape=[-1, 4, 4, 4])
    graph = ends(sketch, x)
    assert graph.n_groups == 4
    assert sketch.resized(graph, 2, [0]) == {"shape": [None, 3, None, None]}


@pytest.mark.parametrize("kind", ["repeat", "tile"])
def test_repeated_channels_go_with_their_original(sketch, groups_of, kind):
    repeats = [1, 2, 1, 1] if kind == "repeat" else [2, 1, 1]  # tile may leave leading ones out
    x = sketch.call(kind, (1, 4, 4, 4), input=stem(sketch, 2), repeats=repeats)
    assert groups_of(ends(sketch, x)) == ["c.weight/0[0] head.weight/1[0,2]", "c.weight/0[1] head.weight/1[1,3]"]


def test_slices_repeated_one_by_one(sketch, groups_of):
    x = sketch.call("repeat_interleave.self_int", (1, 4, 4, 4), input=stem(sketch, 2), repeats=2, dim=-3)
    assert groups_of(ends(sketch, x)) == ["c.weight/0[0] head.weight/1[0,1]", "c.weight/0[1] head.weight/1[2,3]"]


def test_pixel_shuffle_couples_the_pixels_of_a_channel(sketch, groups_of):
    x = sketch.call("pixel_shuffle", (1, 2, 8, 8), input=stem(sketch, 8), upscale_factor=2)
    assert groups_of(ends(sketch, x)) == [
        "c.weight/0[0,1,2,3] head.weight/1[0]",
        "c.weight/0[4,5,6,7] head.weight/1[1]",
    ]


def test_the_pixels_of_a_single_channel_go_together_or_not_at_all(sketch):
    graph = ends(sketch, sketch.call("pixel_shuffle", (1, 1, 8, 8), input=stem(sketch, 4), upscale_factor=2))
    assert graph.n_groups == 0
    assert any("its channels can only go all at once" in f.reason for f in graph.frozen)


@pytest.mark.parametrize(("kind", "shape"), [("pixel_shuffle", (1, 1, 8, 12)), ("pixel_unshuffle", (1, 16, 2, 3))])
def test_positions_read_in_blocks_are_frozen(sketch, kind, shape):
    x = sketch.linear(sketch.input(1, 4, 4, 5), "mix", 6)
    graph = sketch.graph(sketch.call(kind, shape, input=x, upscale_factor=2, downscale_factor=2))
    assert graph.n_groups == 0
    assert any(f.reason.startswith("is read in blocks") for f in graph.frozen)


def test_pixel_unshuffle(sketch, groups_of):
    x = sketch.call("pixel_unshuffle", (1, 8, 2, 2), input=stem(sketch, 2), downscale_factor=2)
    assert groups_of(ends(sketch, x)) == [
        "c.weight/0[0] head.weight/1[0,1,2,3]",
        "c.weight/0[1] head.weight/1[4,5,6,7]",
    ]


def test_depth_to_space_in_its_two_orders(sketch, groups_of):
    """DCR reads (r, r, c), CRD reads (c, r, r)."""
    x = stem(sketch, 8)
    dcr = sketch.onnx("DepthToSpace", (1, 2, 8, 8), input=x, blocksize=2, mode=b"DCR")
    assert groups_of(ends(sketch, dcr)) == [
        "c.weight/0[0,2,4,6] head.weight/1[0]",
        "c.weight/0[1,3,5,7] head.weight/1[1]",
    ]


def test_space_to_depth(sketch, groups_of):
    x = sketch.onnx("SpaceToDepth", (1, 8, 2, 2), input=stem(sketch, 2), blocksize=2)
    assert groups_of(ends(sketch, x)) == [
        "c.weight/0[0] head.weight/1[0,2,4,6]",
        "c.weight/0[1] head.weight/1[1,3,5,7]",
    ]


def test_a_reshape_of_nothing_is_frozen_not_an_error(sketch):
    x = sketch.call("slice", (1, 0, 4, 4), input=stem(sketch, 4), dim=1, start=2, end=2)
    x = sketch.call("flatten", (1, 0), input=x)
    assert x.facets == ()


def test_a_view_in_another_precision_is_frozen(sketch):
    """Elements of half the size: twice as many, of which none is a channel."""
    x = sketch.call("flatten", (1, 64), input=stem(sketch, 4))
    graph = sketch.graph(sketch.call("view", (1, 128), input=x, dtype="int32"))
    assert graph.n_groups == 0
    assert any(f.reason.startswith("its elements are read in another size") for f in graph.frozen)


def test_numbers_move_as_labels_do(sketch):
    from graphprune.passes.channels.value import Value

    index = Value((1,), constant=True, data=np.array([2]))
    index = sketch.call("repeat", (3,), input=index, repeats=[3])
    assert index.data.tolist() == [2, 2, 2]
    index = sketch.call("expand", (2, 3), input=index, shape=[2, 3])
    assert index.data.tolist() == [[2, 2, 2], [2, 2, 2]]

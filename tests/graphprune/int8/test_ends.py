"""The end of a network that joins what eight bits cannot hold together stays in float32, and what is lost is said."""

import numpy as np
import onnx
import pytest
from builder import Builder, run

from graphprune.errors import VerificationError
from graphprune.int8.ends import float_end, mixed_values
from graphprune.int8.options import QuantizeOptions
from graphprune.int8.quantize import quantize_onnx
from graphprune.int8.search import Judge
from graphprune.report.summary import describe_int8

IMAGES = np.random.default_rng(0).standard_normal((48, 3, 16, 16)).astype(np.float32)
OPTIONS = QuantizeOptions(calibration_images=16, search_images=32, min_agreement=0.9)


def detector(join="concat", threshold=None, lost=False):
    """Boxes up to 640 and scores up to 1, concatenated or scaled by a vector; or what NonMaxSuppression picks of them.

    With `lost`, all scores are zero.
    """
    b = Builder(17)
    x = b.call("Relu", b.conv(b.input(("n", 3, 16, 16)), 3, 8, strides=[4, 4]))
    x = b.call("Relu", b.conv(x, 8, 8))
    if join == "vector":
        y = b.call("Sigmoid", b.conv(x, 8, 6, 1))
        factors = np.float32([640] * 4 + [0.0 if lost else 1.0] * 2).reshape(1, 6, 1, 1)
        b.output(b.call("Mul", y, b.literal(factors)), ("n", 6, 4, 4))
        return b.model()
    boxes, scores = b.call("Sigmoid", b.conv(x, 8, 4, 1)), b.call("Sigmoid", b.conv(x, 8, 2, 1))
    boxes = b.call("Mul", boxes, b.literal(np.float32(640)))
    scores = b.call("Mul", scores, b.literal(np.float32(0.0 if lost else 1.0)))
    if join == "like":
        b.output(b.call("Concat", scores, scores, axis=1), ("n", 4, 4, 4))
        return b.model()
    y = b.call("Reshape", b.call("Concat", boxes, scores, axis=1), b.literal(np.array([0, 6, -1])))
    if threshold is None:
        b.output(y, ("n", 6, 16))
        return b.model()
    boxes, scores = b.call("Split", y, b.literal(np.array([4, 2])), outputs=2, axis=1)
    boxes = b.call("Transpose", boxes, perm=[0, 2, 1])
    limits = [np.array([8]), np.float32([0.5]), np.float32([threshold])]
    chosen = b.call("NonMaxSuppression", boxes, scores, *map(b.literal, limits))
    b.output(b.call("GatherND", boxes, b.call("Gather", chosen, b.literal(np.array([0, 2])), axis=1)), ("n", 4))
    return b.model()


def written(folder, name="net.onnx", **options):
    onnx.save(detector(**options), folder / name)
    return folder / name


@pytest.mark.parametrize("join", ["concat", "vector"])
def test_small_parts_survive_beside_large_ones(tmp_path, join):
    source, target = written(tmp_path, join=join), tmp_path / "int8.onnx"
    report = quantize_onnx(source, target, IMAGES, options=OPTIONS)
    assert report.reached
    assert report.layers == len(report.float_layers) + 4 - (join == "vector")
    assert "parts of unlike scale" in report.float_end[0]
    assert "the end stays in float32" in describe_int8({**report.to_dict(), "name": "int8", "of": "net"})
    expected, found = (run(path, {"x": IMAGES}, optimize=True)[0][:, 4:] for path in (source, target))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_an_end_that_joins_like_parts_is_quantized(tmp_path):
    report = quantize_onnx(written(tmp_path, join="like"), tmp_path / "int8.onnx", IMAGES, options=OPTIONS)
    assert report.float_end == ()


@pytest.mark.parametrize("join", ["concat", "vector"])
def test_a_part_that_is_lost_is_all_of_its_variance(tmp_path, join):
    judge = Judge(written(tmp_path, join=join), _samples(16))
    same = judge(detector(join=join).SerializeToString())
    lost = judge(detector(join=join, lost=True).SerializeToString())
    assert (same.fidelity, same.distance) == (1.0, 0.0)
    assert lost.fidelity == 0.0
    assert lost.distance >= 1
    assert "4 to 5 of dimension 1" in lost.worst


def test_objects_that_are_lost_are_counted_and_what_they_are_picked_from_is_judged(tmp_path):
    judge = Judge(written(tmp_path, threshold=0.3), _samples(16))
    assert judge(detector(threshold=0.3).SerializeToString()).fidelity == 1.0
    lost = judge(detector(threshold=0.3, lost=True).SerializeToString())
    assert lost.fidelity == 0.0
    stricter = judge(detector(threshold=0.99).SerializeToString())
    assert 0.5 < stricter.distance <= 1
    assert "elements instead of 1024" in stricter.worst


def test_where_nothing_is_found_what_it_is_picked_from_is_judged(tmp_path):
    judge = Judge(written(tmp_path, threshold=2.0), _samples(16))
    assert "nothing on these images" in judge.not_compared[0]
    assert judge(detector(threshold=2.0).SerializeToString()).fidelity == 1.0
    assert judge(detector(threshold=2.0, lost=True).SerializeToString()).fidelity == 0.0


def test_nothing_to_compare_is_an_error(tmp_path):
    b = Builder(17)
    x = b.conv(b.input(("n", 3, 16, 16)), 3, 2)
    empty = [b.literal(np.array([i])) for i in (0, 0, 1)]
    b.output(b.call("Slice", x, *empty), ("n", 0, 16, 16))
    onnx.save(b.model(), tmp_path / "net.onnx")
    with pytest.raises(VerificationError, match="nothing was compared"):
        Judge(tmp_path / "net.onnx", _samples(8))


def test_the_end_is_found_from_the_graph_and_from_what_the_outputs_hold():
    model = detector()
    for at, node in enumerate(model.graph.node):
        node.name = f"node{at}"
    concat = next(node for node in model.graph.node if node.op_type == "Concat")
    output = model.graph.output[0].name
    limits = {concat.input[0]: 600.0, concat.input[1]: 0.9}
    found = float_end(model.graph, limits, ())
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert sorted(kinds[name] for name in found.nodes) == ["Concat", "Mul", "Mul", "Reshape", "Sigmoid", "Sigmoid"]
    assert found.reasons == (f"'{output}' joins parts of unlike scale (up to 0.9 and up to 600)",)
    assert float_end(model.graph, dict.fromkeys(limits, 1.0), ()).nodes == ()
    assert float_end(model.graph, {}, [output]).nodes == found.nodes
    assert mixed_values(detector("vector"), [[IMAGES]]) == (detector("vector").graph.output[0].name,)


def _samples(count):
    from graphprune.data.samples import samples_of_arrays

    return samples_of_arrays({"x": IMAGES[:count]}, [0], count, "noise")

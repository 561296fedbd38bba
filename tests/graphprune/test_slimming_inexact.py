"""Channels whose removal changes a statistic: what is proven without them, and what is said of the rest."""

import re

import numpy as np
import onnx
import pytest
from builder import Builder, image, literal, run, shapes

import graphprune.passes.onnx.cut as cut
import graphprune.passes.onnx.slim as removal
from graphprune.cli import main
from graphprune.errors import VerificationError
from graphprune.slimming import slim_onnx

PLAIN, STATISTIC = "plain.weight", "statistic.weight"


def build(kind, path, plain=True):
    """Two layers, of which an operator reads the second over its channels; without `plain`, that one alone."""
    b = Builder(20)
    x = b.input(("n", 3, 6, 6))
    if plain:
        x = b.call("Relu", b.conv(x, 3, 8, name="plain"))
    x = b.conv(x, 8 if plain else 3, 6, name="statistic")
    width = 6
    if kind == "Softmax":
        x = b.call("Softmax", x, axis=1)
    elif kind == "LayerNormalization":
        x = b.call("Transpose", x, perm=[0, 2, 3, 1])
        x = b.call("LayerNormalization", x, b.vector(6), b.vector(6), axis=-1)
        x = b.call("Transpose", x, perm=[0, 3, 1, 2])
    elif kind == "ReduceMin":
        x, width = b.call("ReduceMin", x, b.literal(np.int64([1]))), 1
    else:
        x, width = b.call("Cast", b.call(kind, x, axis=1), to=1), 1
    b.output(b.conv(x, width, 4, name="last"), ("n", 4, 6, 6))
    onnx.save(b.model(), path)
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "slim.onnx"


@pytest.mark.parametrize("kind", ["Softmax", "LayerNormalization", "ReduceMin"])
def test_what_is_exact_is_proven_and_how_far_the_rest_moves_is_said(tmp_path, target, kind):
    source = build(kind, tmp_path / "net.onnx")
    report = slim_onnx(source, target, ratio=0.5, allow_inexact=True)
    found = shapes(onnx.load(target))
    assert (found[PLAIN][0], found[STATISTIC][0]) == (4, 3)
    assert (report.removed_groups, report.inexact_groups) == (7, 3)
    assert report.max_error < 1e-5
    (note,) = report.not_compared
    assert note.startswith("3 of 7 removed groups are not exact (")
    assert f"over channels: {kind} at " in note
    assert note.endswith("; compared is the file without the other groups alone")
    assert 1e-4 < float(re.search(r"by up to (\S+) of their scale", note)[1]) < 100


def test_the_distance_is_that_from_the_file_with_zeros(tmp_path, target):
    """Told by hand: the file with the channels that went set to zero, against the one that was written."""
    source = build("Softmax", tmp_path / "net.onnx")
    report = slim_onnx(source, target, ratio=0.5, allow_inexact=True)
    said = float(re.search(r"by up to (\S+) of their scale", report.not_compared[0])[1])
    masked, slim = onnx.load(source), onnx.load(target)
    for name in ("plain", "statistic"):
        for part in (f"{name}.weight", f"{name}.bias"):
            whole = literal(masked, part)
            left = literal(slim, f"{name}.bias")
            whole[~np.isin(literal(masked, f"{name}.bias"), left)] = 0
            tensor = next(t for t in masked.graph.initializer if t.name == part)
            tensor.CopyFrom(onnx.numpy_helper.from_array(whole, part))
    (a,), (b,) = (run(model, {"x": image(4, 3, 6, 6)}) for model in (masked, slim))
    assert 0.3 * said < np.abs(a - b).max() / np.abs(a).max() < 3 * said


@pytest.mark.parametrize("kind", ["Softmax", "LayerNormalization"])
def test_where_nothing_is_exact_nothing_was_compared(tmp_path, target, kind, capsys):
    source = build(kind, tmp_path / "net.onnx", plain=False)
    report = slim_onnx(source, target, ratio=0.5, allow_inexact=True)
    assert report.max_error is None
    assert report.to_dict()["max_error"] is None
    assert report.inexact_groups == report.removed_groups == 3
    assert report.not_compared[0].startswith("none of the 3 removed groups is exact (")
    assert report.not_compared[0].endswith("; nothing was compared")
    assert main(["slim", str(source), str(target), "--ratio", "0.5", "--allow-inexact", "--force"]) == 0
    out = capsys.readouterr().out
    assert "; nothing was compared" in out
    assert "largest difference" not in out


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_a_layer_whose_positions_are_told_stays_and_the_others_go(tmp_path, target, kind, capsys):
    source = build(kind, tmp_path / "net.onnx")
    report = slim_onnx(source, target, ratio=0.5, allow_inexact=True)
    found = shapes(onnx.load(target))
    assert (found[PLAIN][0], found[STATISTIC][0]) == (4, 6)
    assert (report.inexact_groups, report.not_compared) == (0, ())
    assert report.max_error < 1e-5
    assert main(["inspect", str(source)]) == 0
    assert f"gives positions among channels: {kind} at " in capsys.readouterr().out


def test_exact_channels_alone_are_compared_as_ever(tmp_path, target):
    report = slim_onnx(build("Softmax", tmp_path / "net.onnx"), target, ratio=0.5)
    assert (report.removed_groups, report.inexact_groups, report.not_compared) == (4, 0, ())


@pytest.fixture(params=["wrong numbers", "the bias of another channel"])
def _wrong(request, monkeypatch):
    """A mistake of ours in the cut of the plain layer, which a softmax behind it would hide."""
    right = cut.stored

    def stored(value):
        array = right(value)
        if value.name != ("plain.weight" if request.param == "wrong numbers" else "plain.bias"):
            return array
        return array * np.float32(1.01) if request.param == "wrong numbers" else np.roll(array, 1)

    run_cut = removal.remove_groups

    def wrong(graph, removed):
        monkeypatch.setattr(cut, "stored", stored)
        run_cut(graph, removed)
        monkeypatch.setattr(cut, "stored", right)

    monkeypatch.setattr(removal, "remove_groups", wrong)


@pytest.mark.usefixtures("_wrong")
def test_a_mistake_in_what_is_exact_is_exit_code_4(tmp_path, target, capsys):
    source = build("Softmax", tmp_path / "net.onnx")
    with pytest.raises(VerificationError, match="does not compute what the given file does"):
        slim_onnx(source, target, ratio=0.5, allow_inexact=True)
    assert main(["slim", str(source), str(target), "--ratio", "0.5", "--allow-inexact"]) == 4
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]

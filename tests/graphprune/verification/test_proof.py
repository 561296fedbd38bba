"""What is proven before a slim file is written, and what is said when that fails."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builder import Builder, image, network, zero
from onnx import TensorProto, numpy_helper

import graphprune.passes.onnx.slim as removal
from graphprune.cli import main
from graphprune.errors import VerificationError
from graphprune.formats import onnx_files
from graphprune.slimming import slim_onnx
from graphprune.verification import proof


@pytest.fixture
def _wrong(monkeypatch):
    """A mistake of ours: a channel that is alive is taken for dead."""
    right, calls = removal.dead_groups, []

    def wrong(graph):
        found = right(graph)
        if not calls:
            found[np.flatnonzero(~found)[0]] = True
        calls.append(graph)
        return found

    monkeypatch.setattr(removal, "dead_groups", wrong)


@pytest.mark.usefixtures("_wrong")
def test_a_wrong_removal_is_refused_and_the_first_value_named(source):
    with pytest.raises(VerificationError) as caught:
        slim_onnx(source, source.with_name("slim.onnx"))
    message = str(caught.value)
    assert "the slim file does not compute what the given file does: output 'conv_9' differs by" in message
    # the convolution that lost a channel has another size; the next one is the first whose numbers differ
    assert "first difference inside: 'conv_5'" in message
    assert sorted(path.name for path in source.parent.iterdir()) == ["net.onnx"]


@pytest.mark.usefixtures("_wrong")
def test_that_is_exit_code_4(source, capsys):
    target = source.with_name("slim.onnx")
    assert main(["slim", str(source), str(target)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "first difference inside" in err
    assert not target.exists()


def test_given_inputs_count_too(source, monkeypatch):
    """A difference that only real inputs show: the random ones are not used here."""
    monkeypatch.setattr(proof, "random_inputs", lambda specs, shapes, seed=0: {"x": np.zeros(shapes["x"], "f4")})
    right = removal.dead_groups
    monkeypatch.setattr(removal, "dead_groups", lambda graph: right(graph) | (np.arange(graph.n_groups) == 0))
    model = network()
    zero(model, "first.bias", slice(None))
    zero(model, "middle.bias", slice(None))
    onnx.save(model, source)
    slim_onnx(source, source.with_name("unseen.onnx"))
    with pytest.raises(VerificationError):
        slim_onnx(source, source.with_name("seen.onnx"), inputs={"x": image(2, 3, 8, 8)})
    assert not source.with_name("seen.onnx").exists()


def test_a_file_in_float16_is_held_to_what_float16_can_say(source):
    model = network()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    right = proof.Proof._answers
    noise = np.float16(1.002)  # two units of rounding: what another order of sums makes

    def noisy(*arguments):
        return [replace(each, outputs=[output * noise for output in each.outputs]) for each in right(*arguments)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof.Proof, "_answers", noisy)
        onnx.save(model, source)
        assert slim_onnx(source, source.with_name("slim.onnx")).removed_channels == 2
        onnx.save(network(), source)
        with pytest.raises(VerificationError, match=r"0\.0001 is tolerated"):
            slim_onnx(source, source.with_name("other.onnx"))


def counted(monkeypatch):
    """The batch sizes of all that is run, by model."""
    runs = []
    open_session = proof.open_session

    class Counting:
        def __init__(self, session, name):
            self.session, self.name = session, name

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, names, feed):
            runs.append((self.name, len(feed["x"])))
            return self.session.run(names, feed)

    monkeypatch.setattr(
        proof, "open_session", lambda *a, name=None, **k: Counting(open_session(*a, name=name, **k), name)
    )
    return runs


def test_both_files_run_at_two_batch_sizes(source, monkeypatch):
    runs = counted(monkeypatch)
    slim_onnx(source, source.with_name("slim.onnx"))
    assert runs == [("net.onnx", 1), ("net.onnx", 2), ("the slim file", 1), ("the slim file", 2)]


def test_where_nothing_changed_the_written_file_runs_once(source, monkeypatch):
    slim_onnx(source, source.with_name("slim.onnx"))
    runs = counted(monkeypatch)
    slim_onnx(source.with_name("slim.onnx"), source.with_name("again.onnx"))
    assert runs == [("slim.onnx", 1), ("slim.onnx", 2), ("the slim file", 1)]


def test_a_file_that_is_written_wrong_is_refused_though_nothing_changed(source, monkeypatch):
    slim_onnx(source, source.with_name("slim.onnx"))
    write = onnx_files.wire.write

    def wrong(model, path):
        (value,) = (v for v in model.graph.initializers.values() if v.name == "last.bias")
        value.const_value = ir.tensor(value.const_value.numpy() + 1, name=value.name)
        write(model, path)

    monkeypatch.setattr(onnx_files.wire, "write", wrong)
    with pytest.raises(VerificationError, match="does not compute"):
        slim_onnx(source.with_name("slim.onnx"), source.with_name("again.onnx"))
    assert not source.with_name("again.onnx").exists()


def test_a_file_that_is_random_is_said_to_be_the_reason(source):
    b = Builder(18)
    x = b.call("Relu", b.conv(b.input(("n", 3, 8, 8)), 3, 8, name="first"))
    x = b.call("Dropout", x, b.literal(np.float32(0.5)), b.literal(np.bool_(True)))
    b.output(b.conv(x, 8, 4, name="last"), ("n", 4, 8, 8))
    onnx.save(b.model(), source)
    with pytest.raises(VerificationError, match=r"the given file gives other numbers every time .* in eval mode"):
        slim_onnx(source, source.with_name("slim.onnx"))
    assert not source.with_name("slim.onnx").exists()


def heads(path, factor=1.0, rows=3, bound=0.0):
    """Two outputs of rows of four numbers: as they came in, and those above a bound."""
    b = Builder(18)
    x = b.call("Slice", b.input((3, 4)), *(b.literal(np.int64([at])) for at in (0, rows, 0)))
    b.output(b.call("Mul", x, b.literal(np.float32(factor))), (rows, 4))
    b.output(b.call("NonZero", b.call("Greater", x, b.literal(np.float32(bound)))), (2, "found"), TensorProto.INT64)
    onnx.save(b.model(), path)
    return path


def test_how_far_a_file_moves_is_measured_and_not_judged(tmp_path):
    reference = proof.run_reference(heads(tmp_path / "a.onnx"), None, None, "a.onnx")
    assert reference.distance_to(tmp_path / "a.onnx", 1e-4) == proof.Verdict(0.0)
    found = reference.distance_to(heads(tmp_path / "b.onnx", factor=1.5), 1e-4)
    assert (found.error, found.notes) == (pytest.approx(0.5), ())
    found = reference.distance_to(heads(tmp_path / "c.onnx", bound=0.7), 1e-4)
    (note,) = found.notes
    assert note.endswith("selects another number of things, not compared")


def test_a_file_that_moves_has_the_form_of_the_reference(tmp_path):
    reference = proof.run_reference(heads(tmp_path / "a.onnx"), None, None, "a.onnx")
    with pytest.raises(VerificationError, match="has shape 2x4 where 3x4 is expected"):
        reference.distance_to(heads(tmp_path / "b.onnx", rows=2), 1e-4)
    with pytest.raises(VerificationError, match="holds NaN or infinity in the candidate"):
        reference.distance_to(heads(tmp_path / "c.onnx", factor=np.inf), 1e-4)
    reference = proof.run_reference(tmp_path / "c.onnx", None, None, "c.onnx")
    (note,) = reference.distance_to(heads(tmp_path / "d.onnx"), 1e-4).notes
    assert note.endswith("is not finite with the channels at zero, not compared")

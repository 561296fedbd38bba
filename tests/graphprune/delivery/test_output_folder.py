import json
import logging

import pytest

import graphprune as gp
from graphprune.delivery.deliver import member_names
from graphprune.delivery.output_folder import CHECKPOINT, CURVE, LOG, RESULTS, SEARCH, SETTINGS, STAGING, OutputFolder
from graphprune.passes.errors import GraphPruneError, ModelLoadError, OutputExistsError, UsageError

logger = logging.getLogger("graphprune")


def finish(path, text="first", **options):
    """A whole run that writes `text` into every file."""
    folder = OutputFolder(path, **options)
    with folder.open() as staging:
        logger.info("before the training of the %s", text)
        folder.begin({"mean": 0.5})
        folder.checkpoint.write_text(text)
        for name in RESULTS:
            (staging / name).write_text(text)
        folder.commit(staging)


def fail(folder, *, begin=False):
    """A run that fails, before its training or (`begin`) in it."""
    with folder.open() as staging:
        (staging / "slim.onnx").write_text("slim")
        if begin:
            folder.begin({})
        raise KeyError("the run fails")


def stop(folder, begun):
    """A run that is stopped by Ctrl-C, before its training or in it."""
    with folder.open():
        if begun:
            folder.begin({"mean": 0.5})
            folder.checkpoint.write_text("state")
        raise KeyboardInterrupt


def names(path):
    return sorted(file.name for file in path.iterdir())


def test_results_get_their_names_at_the_end(tmp_path):
    out = tmp_path / "a" / "b"
    folder = OutputFolder(out)
    assert not out.exists()
    with folder.open() as staging:
        folder.begin({})
        folder.checkpoint.write_text("")
        (staging / "slim.onnx").write_text("slim")
        assert names(out) == sorted([CHECKPOINT, LOG, SETTINGS, STAGING])
        folder.commit(staging)
    assert names(out) == sorted([CHECKPOINT, LOG, SETTINGS, "slim.onnx"])


def test_a_failure_before_the_first_checkpoint_leaves_nothing(tmp_path):
    for begin in (False, True):
        folder = OutputFolder(tmp_path / "a" / "out")
        with pytest.raises(KeyError):
            fail(folder, begin=begin)
        assert names(tmp_path) == []


def test_a_later_failure_keeps_checkpoint_and_log_and_no_result(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path / "out")
    begin = folder.begin

    def begin_and_save(settings):
        begin(settings)
        folder.checkpoint.write_text("state")

    monkeypatch.setattr(folder, "begin", begin_and_save)
    with pytest.raises(KeyError):
        fail(folder, begin=True)
    assert names(tmp_path / "out") == sorted([CHECKPOINT, LOG, SETTINGS])


@pytest.mark.parametrize("begun", [False, True])
def test_whoever_stops_a_run_is_told_how_to_go_on_with_it(tmp_path, caplog, begun):
    finish(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stop(OutputFolder(tmp_path, force=True), begun)
    assert ("the same again with `resume=True`" in caplog.text) == begun


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"mine\.txt.*`force=True`"):
        OutputFolder(tmp_path)
    with pytest.raises(OutputExistsError, match="this is a file"):
        OutputFolder(tmp_path / "mine.txt")
    finish(tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(OutputExistsError, match="`resume=True`"):
        OutputFolder(tmp_path)


def test_an_empty_folder_and_leftovers_of_a_killed_start_are_fine(tmp_path):
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "dense.onnx").write_text("half")
    (tmp_path / LOG).write_text("")
    finish(tmp_path)
    assert (tmp_path / "dense.onnx").read_text() == "first"


def test_resume_of_a_run_killed_before_its_first_checkpoint_starts_it(tmp_path):
    (tmp_path / STAGING).mkdir()
    (tmp_path / LOG).write_text("begun")
    folder = OutputFolder(tmp_path, resume=True)
    assert not folder.resume
    with folder.open() as staging:
        folder.begin({"mean": 0.5})
        folder.checkpoint.write_text("state")
        assert staging.is_dir()
    assert OutputFolder(tmp_path, resume=True).resume


def test_force_replaces_everything_and_only_once_the_training_begins(tmp_path):
    finish(tmp_path)
    folder = OutputFolder(tmp_path, force=True)
    with pytest.raises(KeyError):
        fail(folder)
    assert {(tmp_path / name).read_text() for name in (*RESULTS, CHECKPOINT)} == {"first"}
    with pytest.raises(KeyError):
        fail(folder, begin=True)
    assert names(tmp_path) == []
    finish(tmp_path, "second", force=True)
    assert {(tmp_path / name).read_text() for name in (*RESULTS, CHECKPOINT)} == {"second"}


def test_force_removes_families_and_int8_versions_and_nothing_of_others(tmp_path):
    finish(tmp_path)
    config = gp.CompressConfig(n_students=3, macs=(0.5, 0.5, 0.66), params=(0.25, 0.25, 0.00001))
    members = [name + end for name in member_names(config) for end in (".onnx", ".pt2", ".plan.json", "-int8.onnx")]
    for name in (*members, "slim-int8.onnx", "slim-mine.onnx", "slim.onnx.bak"):
        (tmp_path / name).write_text("earlier")
    finish(tmp_path, "second", force=True)
    assert names(tmp_path) == sorted([*RESULTS, CHECKPOINT, LOG, SETTINGS, "slim-mine.onnx", "slim.onnx.bak"])


@pytest.mark.parametrize("has_searched", [False, True])
def test_the_curve_of_an_earlier_search_is_no_result_of_a_run_without_one(tmp_path, has_searched):
    finish(tmp_path)
    for name in (SEARCH, CURVE):
        (tmp_path / name).write_text("")
    folder = OutputFolder(tmp_path, force=True)
    with folder.open():
        folder.begin({}, has_searched=has_searched)
    assert (tmp_path / SEARCH).exists()
    assert (tmp_path / CURVE).exists() == has_searched


def test_resume_needs_a_checkpoint_and_the_same_settings(tmp_path):
    with pytest.raises(ModelLoadError, match="no checkpoint"):
        OutputFolder(tmp_path, resume=True)
    with pytest.raises(UsageError, match="give one of them"):
        OutputFolder(tmp_path, resume=True, force=True)
    with pytest.raises(UsageError, match="needs the output folder"):
        OutputFolder(None, resume=True)
    finish(tmp_path)
    folder = OutputFolder(tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"the mean was 0\.5 and is now 0\.4"), folder.open():
        folder.check({"mean": 0.4})
    assert (tmp_path / "slim.onnx").read_text() == "first"
    finish(tmp_path, "again", resume=True)
    assert (tmp_path / "slim.onnx").read_text() == "again"


def test_broken_settings_are_one_line(tmp_path):
    finish(tmp_path)
    (tmp_path / SETTINGS).write_text("{")
    folder = OutputFolder(tmp_path, resume=True)
    with pytest.raises(ModelLoadError, match="cannot be resumed"), folder.open():
        folder.check({"mean": 0.5})


def test_the_log_holds_what_was_said_before_the_folder_was(tmp_path):
    finish(tmp_path)
    finish(tmp_path, "second", resume=True)
    text = (tmp_path / LOG).read_text()
    assert text.index("training of the first") < text.index("training of the second")
    assert json.loads((tmp_path / SETTINGS).read_text()) == {"mean": 0.5}


def test_every_line_of_the_log_is_on_the_disk_at_once(tmp_path):
    folder = OutputFolder(tmp_path / "out")
    level, handlers = logger.level, list(logger.handlers)
    with folder.open():
        folder.begin({})
        logger.info("step 1")
        assert "step 1" in (tmp_path / "out" / LOG).read_text()
    assert (logger.level, logger.handlers) == (level, handlers)


def test_without_a_path_nothing_stays():
    folder = OutputFolder(None)
    assert folder.checkpoint is None
    with folder.open() as staging:
        folder.begin({})
        (staging / "slim.onnx").write_text("slim")
        folder.commit(staging)
    assert not staging.exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    folder = OutputFolder(tmp_path / "file" / "out")
    with pytest.raises(GraphPruneError, match="cannot be written to"), folder.open():
        pass


@pytest.mark.parametrize(
    "name", [".checkpoint.0123abcd.pt", ".search-macs0.5.0123abcd.json", ".settings.0123abcd.json"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_while_it_wrote_a_file_can_be_started_again(tmp_path, name, resume):
    (tmp_path / name).write_text("half")
    (tmp_path / LOG).write_text("")
    finish(tmp_path, resume=resume)
    assert names(tmp_path) == sorted([*RESULTS, CHECKPOINT, LOG, SETTINGS])


def test_a_file_of_somebody_else_is_no_leftover(tmp_path):
    (tmp_path / ".notes.0123abcd.json").write_text("")
    with pytest.raises(OutputExistsError, match=r"it has \.notes\.0123abcd\.json"):
        OutputFolder(tmp_path)


def test_a_run_that_fails_before_it_begins_leaves_what_an_earlier_one_left(tmp_path):
    finish(tmp_path)
    (tmp_path / CHECKPOINT).unlink()  # the user needs the space
    before = names(tmp_path)
    with pytest.raises(KeyError):
        fail(OutputFolder(tmp_path, force=True))
    assert names(tmp_path) == before


def test_a_full_disk_is_said_by_whoever_finds_out_and_not_by_the_log(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    folder = OutputFolder(tmp_path / "out")

    def run():
        with folder.open():
            folder.begin({})
            target = folder._log.target
            monkeypatch.setattr(target, "flush", full)
            monkeypatch.setattr(target, "close", full)
            logger.info("one line")
            raise GraphPruneError("checkpoint.pt: the disk is full")

    with pytest.raises(GraphPruneError, match="the disk is full"):
        run()
    assert "Logging error" not in capsys.readouterr().err


def test_the_curves_of_a_familys_search_go_with_a_run_without_one(tmp_path):
    for name in ("search-macs0.5.json", "search-macs0.5.svg", "search-macs0.33-params0.2.svg"):
        (tmp_path / name).write_text("")
    finish(tmp_path)
    assert names(tmp_path) == sorted([*RESULTS, CHECKPOINT, LOG, SETTINGS, "search-macs0.5.json"])

import errno
import json
import os

import pytest

from graphprune.errors import GraphPruneError, OutputExistsError
from graphprune.formats.files import (
    atomic_write,
    atomic_write_json,
    atomic_write_text,
    atomic_write_through_memory,
    meant_to_be,
    refuse_overwrite,
    remove_half_written,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / "new" / "plan.json"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".json"
        temporary.write_text("{}")
        assert not target.exists()
    assert target.read_text() == "{}"
    assert names(target.parent) == ["plan.json"]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, interruption):
    target = tmp_path / "plan.json"
    target.write_text("old")

    def write():
        with atomic_write(target) as temporary:
            temporary.write_text("ne")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(tmp_path, code):
    def write():
        with atomic_write(tmp_path / "model.onnx") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(code, os.strerror(code))

    with pytest.raises(GraphPruneError, match=r"model\.onnx: the disk is full") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_writer_that_fails_in_memory_leaves_the_disk_alone(tmp_path):
    target = tmp_path / "model.pt"
    atomic_write_through_memory(target, lambda file: file.write(b"whole"))
    assert target.read_bytes() == b"whole"

    def write(file):
        file.write(b"half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        atomic_write_through_memory(target, write)
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["model.pt"]


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(GraphPruneError, match="out: cannot be written"):
        atomic_write_text(tmp_path / "out", "x")
    assert names(tmp_path) == ["out"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(GraphPruneError, match="cannot be written"):
        atomic_write_text(tmp_path / "out" / "plan.json", "x")


def test_errors_about_other_files_are_not_ours(tmp_path):
    def write():
        with atomic_write(tmp_path / "copy"):
            (tmp_path / "source").read_bytes()

    with pytest.raises(FileNotFoundError, match="source"):
        write()


def test_json_round_trip_and_no_nan(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"b": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


def test_overwriting_needs_force(tmp_path):
    target = tmp_path / "slim.onnx"
    refuse_overwrite(target)
    target.write_text("x")
    with pytest.raises(OutputExistsError, match=r"slim\.onnx: this file exists.*`force=True`"):
        refuse_overwrite(target)
    with pytest.raises(OutputExistsError, match="this folder exists"):
        refuse_overwrite(tmp_path)
    refuse_overwrite(target, force=True)


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        refuse_overwrite(tmp_path / "link")


@pytest.mark.parametrize("name", ["checkpoint.pt", "slim.plan.json", "LICENSE", "search-macs0.5.json"])
def test_what_a_killed_writer_leaves_is_known_by_its_name_and_removed(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("half")
        left = temporary.name
    (tmp_path / left).write_text("half")
    (tmp_path / ".other.0a1b2c3d.pt").write_text("half")
    assert meant_to_be(left) == name
    assert meant_to_be(name) == name
    remove_half_written(tmp_path, lambda final: final == name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, ".other.0a1b2c3d.pt"])
    remove_half_written(tmp_path / "nowhere", lambda final: True)

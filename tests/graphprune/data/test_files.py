import zipfile

import numpy as np
import pytest

from graphprune.data.files import class_labels, open_files
from graphprune.errors import DataError


def test_folder_is_listed_sorted_without_hidden_and_other_files(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a/x/3.webp", ".git/4.png", "b/._5.png", "notes.txt", "6.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    with open_files(tmp_path) as files:
        assert files.paths == ("6.jpeg", "a/x/3.webp", "b/1.jpg", "b/2.PNG")
        assert files.read("b/1.jpg") == b"b/1.jpg"


def test_symbolic_link_that_leads_back_is_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    with open_files(tmp_path) as files:
        assert files.paths == ("a/1.png",)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "__MACOSX/train/cat/1.jpg", "readme.txt"):
            opened.writestr(name, name)
    return path


def test_zip_and_a_folder_inside_it(archive):
    with open_files(archive) as files:
        assert files.paths == ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
    with open_files(f"{archive}::train/") as files:
        assert files.paths == ("cat/1.jpg", "dog/2.jpg")
        assert files.read("dog/2.jpg") == b"train/dog/2.jpg"


def test_sources_that_hold_no_images(archive, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "list.csv"
    text.write_text("a,b")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:-30])
    for source, message in [
        (empty, "there is no image in"),
        (tmp_path / "absent", "no such folder or file"),
        (text, "is no folder, zip, .npz or .npy"),
        (broken, "is no folder, zip, .npz or .npy"),
        (f"{archive}::test", "has no folder test; it has __MACOSX, train, val"),
        (f"{tmp_path}::empty", "is a folder: write"),
    ]:
        with pytest.raises(DataError, match=message) as caught, open_files(source):
            pass
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "names", "labels"),
    [
        (["cat/1.jpg", "ant/2.jpg", "cat/x/3.jpg"], ("ant", "cat"), [1, 0, 1]),
        (["set/cat/1.jpg", "set/dog/2.jpg"], ("cat", "dog"), [0, 1]),
        (["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], ("cat", "dog"), [0, 1, 0]),
    ],
)
def test_folders_name_classes(paths, names, labels):
    classes = class_labels(paths)
    assert classes is not None
    assert classes.names == names
    np.testing.assert_array_equal(classes.labels, labels)


@pytest.mark.parametrize("paths", [["1.jpg", "2.jpg"], ["all/1.jpg", "all/2.jpg"], ["cat/1.jpg", "dog/2.jpg", "3.jpg"]])
def test_folders_that_name_no_classes(paths):
    assert class_labels(paths) is None

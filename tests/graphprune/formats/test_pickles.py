import argparse
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.errors import ModelLoadError
from graphprune.formats.pickles import Foreign, read_pickle


def stored(path, held, zipped=True):
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    return read_pickle(path, trust=False)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "number",
    [
        np.float64(0.75),
        np.float32(-2.5),
        np.float16(1.5),
        np.int64(-7),
        np.uint8(200),
        np.bool_(True),
        np.complex64(2j),
    ],
    ids=lambda number: type(number).__name__,
)
def test_numbers_of_numpy_are_those_of_python(tmp_path, number, zipped):
    read = stored(tmp_path / "a.pt", {"w": torch.ones(2), "best": number}, zipped)
    assert read["best"] == number.item()
    assert type(read["best"]) is type(number.item())


def test_the_order_of_the_bytes_counts(tmp_path):
    big = np.dtype(">f4").type(0)
    swapped = np.array(0.5, ">f4")[()]  # NumPy turns it round itself
    assert stored(tmp_path / "a.pt", [swapped, big]) == [0.5, 0.0]


def test_other_objects_are_stand_ins_that_know_their_class(tmp_path):
    held = {
        "args": argparse.Namespace(lr=0.1, out=Path("x"), deep={"a": argparse.Namespace()}),
        "net": nn.Conv2d(1, 2, 3),
        "text": np.str_("abc"),
        "array": np.ones(3),
        "w": torch.ones(2),
    }
    read = stored(tmp_path / "a.pt", held)
    assert read["w"].tolist() == [1, 1]
    names = {name: value.class_name for name, value in read.items() if isinstance(value, Foreign)}
    assert names.keys() == {"args", "net", "text", "array"}
    assert names["args"] == "argparse.Namespace"
    assert names["net"] == "torch.nn.modules.conv.Conv2d"
    assert vars(read["args"]) == {}


def test_containers_of_the_standard_library_are_plain_ones(tmp_path):
    counts = collections.defaultdict(list, a=[torch.ones(1)])
    read = stored(tmp_path / "a.pt", {"d": counts, "q": collections.deque([1, 2], maxlen=5)})
    assert type(read["d"]) is dict
    assert read["d"]["a"][0].tolist() == [1]
    assert read["q"] == [1, 2]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_that_a_file_names_is_called_or_imported(tmp_path):
    marker = str(tmp_path / "ran")
    harmless = Calls(os.path.join, "a", Calls(open, marker, "w"))
    assert isinstance(stored(tmp_path / "a.pt", {"a": harmless})["a"], Foreign)
    assert isinstance(stored(tmp_path / "b.pt", Calls(exec, f"open({marker!r}, 'w')")), Foreign)
    with pytest.raises(ModelLoadError, match="trust_pickle=True"):
        stored(tmp_path / "c.pt", Calls(os.system, f"touch {marker}"))
    assert not Path(marker).exists()


class Settings(dict):
    pass


def test_what_cannot_be_read_without_its_code_is_said_by_name(tmp_path):
    torch.save({"w": torch.ones(2), "config": Settings(lr=0.1)}, tmp_path / "a.pt")  # a stand-in has no items
    with pytest.raises(ModelLoadError, match=r"more than tensors \(.*Settings\).*trust_pickle=True"):
        read_pickle(tmp_path / "a.pt", trust=False)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(argparse.Namespace()))
    with pytest.raises(ModelLoadError):
        read_pickle(tmp_path / "b.pt", trust=False)


def test_with_permission_objects_are_what_they_were(tmp_path, caplog):
    torch.save({"net": nn.Linear(2, 3), "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")
    read = read_pickle(tmp_path / "a.pt", trust=True)
    assert read["args"].lr == 0.1
    assert read["net"].out_features == 3
    assert "it may run any code" in caplog.text
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")
    caplog.clear()
    read_pickle(tmp_path / "b.pt", trust=True)
    assert caplog.text == ""  # there was no code in it

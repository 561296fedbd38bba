from pathlib import Path

import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.formats.entries import AVERAGED, OF_TRAINING, PLAIN, Checkpoint, is_averaged
from graphprune.formats.pickles import Foreign

W = {"a.w": torch.ones(2), "a.n": torch.tensor(1)}


def checkpoint(held):
    return Checkpoint(Path("c.pt"), held)


@pytest.mark.parametrize(
    "key",
    ["ema", "state_dict_ema", "model_ema", "params_ema", "G_ema", "modelEMA", "ema.module", "swa", "shadow_params"],
)
def test_names_of_averages(key):
    assert is_averaged(key.split("."))


@pytest.mark.parametrize("key", ["state_dict", "model", "semantic", "avgpool", "schema", "teacher", "best"])
def test_names_that_say_nothing_of_averages(key):
    assert not is_averaged([key])


def test_weights_are_found_wherever_they_lie():
    held = {"epoch": 3, "model": W, "ema": {"module": W, "updates": 3}, "args": Foreign(), "net": nn.Linear(2, 2)}
    found = checkpoint(held)
    assert [keys for keys, _ in found.states] == [("model",), ("ema", "module")]
    assert [keys for keys, _ in found.modules] == [("net",)]
    assert found.foreign == [""]
    assert [keys for keys, _ in checkpoint(W).states] == [()]
    assert checkpoint({"counts": {"n": torch.tensor(3)}}).states == []  # numbers are no weights


def test_networks_come_without_what_was_put_around_them():
    net = nn.Linear(2, 2)
    wrapped = nn.DataParallel(torch.optim.swa_utils.AveragedModel(net))
    ((_, found),) = checkpoint({"model": wrapped}).modules
    assert type(found) is nn.Linear
    compiled = nn.Module()
    compiled._orig_mod = net
    assert checkpoint(compiled).modules == [((), net)]


def test_an_average_comes_before_others_and_what_the_training_keeps_last():
    held = {"state_dict": W, "state_dict_ema": W, "optimizer": {"state": {0: W}}, "callbacks": {"SWA": {"average": W}}}
    found = checkpoint(held)
    assert [found.rank(keys) for keys, _ in found.states] == [PLAIN, AVERAGED, OF_TRAINING, OF_TRAINING]


def test_two_trainers_publish_the_average_as_the_state_dict():
    lightning = checkpoint(
        {"state_dict": W, "current_model_state": W, "averaging_state": {"n_averaged": torch.tensor(3)}}
    )
    assert [lightning.rank(keys) for keys, _ in lightning.states] == [AVERAGED, OF_TRAINING]
    mmengine = checkpoint({"state_dict": W, "ema_state_dict": {"steps": torch.tensor(3), **W}})
    assert [mmengine.rank(keys) for keys, _ in mmengine.states] == [AVERAGED, OF_TRAINING]
    other = checkpoint({"state_dict": W, "ema_state_dict": W})
    assert [other.rank(keys) for keys, _ in other.states] == [PLAIN, AVERAGED]


def test_a_part_goes_by_its_keys():
    held = {
        "x": {"y.z": {"model": W}},
        "state_dict": {"net.a": torch.ones(1), "head.b": torch.ones(2)},
        "top": torch.ones(3),
    }
    found = checkpoint(held)
    assert found.part("x.y.z.model").held is W
    assert found.part("x.y.z").name(("model",)) == "x.y.z.model"
    assert list(found.part("state_dict.net").held) == ["a"]
    assert list(found.part(".").held) == ["top"]
    for wrong in ("x.z", "state_dict.n", "epoch", "top"):
        with pytest.raises(UsageError, match=rf"c\.pt has no entry {wrong}: .* are \., x\.y\.z\.model, state_dict"):
            found.part(wrong)

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from graphprune.errors import ModelLoadError
from graphprune.formats.choice import fitting_weights, whole_network
from graphprune.formats.entries import Checkpoint
from graphprune.formats.pickles import Foreign


class Net(nn.Module):
    def __init__(self, fill=0.0):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 5)
        for parameter in self.parameters():
            nn.init.constant_(parameter, fill)


def state(fill, prefix=""):
    return {prefix + name: value for name, value in Net(fill).state_dict().items()}


def taken(held, caplog, entry=None):
    """What the weights are filled with, and what was said."""
    caplog.clear()
    checkpoint = Checkpoint(Path("c.pt"), held)
    with caplog.at_level(logging.INFO, logger="graphprune"):
        found = fitting_weights(checkpoint.part(entry) if entry else checkpoint, Net(), "nets:Net")
    return float(found["fc.weight"].mean()), [(r.levelname, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize(
    ("held", "name"),
    [
        ({"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict_ema"),
        ({"params": state(1), "params_ema": state(2)}, "params_ema"),
        ({"model": state(1), "model_ema": {"n_averaged": torch.tensor(9), **state(2, "module.")}}, "model_ema.module"),
        ({"ema": {"module": state(2), "updates": 3}, "state_dict": state(1)}, "ema.module"),
        ({"state_dict": {**state(1, "model."), **state(2, "model_ema.")}}, "state_dict.model_ema"),
        ({"state_dict": {**state(1, "net."), **state(2, "ema.ema_model.")}}, "state_dict.ema.ema_model"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_average_is_taken_and_both_are_named(held, name, caplog):
    fill, said = taken(held, caplog)
    assert fill == 2
    (warning,) = [text for level, text in said if level == "WARNING"]
    assert f"took {name!r}, the average over the training, and not " in warning
    other = warning.split('entry="')[1].split('"')[0]
    fill, said = taken(held, caplog, entry=other)
    assert fill == 1
    assert "WARNING" not in dict(said)


def test_an_average_alone_is_taken_without_ado(caplog):
    assert taken({"epoch": 3, "ema": {"module": state(2)}}, caplog) == (
        2,
        [("INFO", "c.pt: took the entry 'ema.module' of the checkpoint")],
    )


def test_what_is_raw_beside_an_average_under_the_plain_name(caplog):
    held = {"state_dict": state(2, "model."), "current_model_state": state(1, "model.")}
    assert taken(held, caplog)[0] == 2
    assert (
        taken({"state_dict": state(2), "ema_state_dict": {"steps": torch.tensor(1), **state(1, "module.")}}, caplog)[0]
        == 2
    )


def test_two_sets_without_a_reason_for_either_are_refused(caplog):
    for held, names in (
        ({"state_dict": state(1), "best": state(2)}, "state_dict, best"),
        ({"state_dict": {**state(1, "student."), **state(2, "teacher.")}}, "state_dict.student, state_dict.teacher"),
        ({"ema": state(1), "swa": state(2)}, "ema, swa"),
    ):
        with pytest.raises(ModelLoadError, match=rf'several sets of weights.*: {names}; choose with `entry="'):
            taken(held, caplog)
    assert taken({"state_dict": {**state(1, "student."), **state(2, "teacher.")}}, caplog, "state_dict.teacher")[0] == 2


def test_the_same_weights_twice_are_one_set(caplog):
    fill, said = taken({"state_dict": state(1), "model": state(1, "module.")}, caplog)
    assert fill == 1
    assert "WARNING" not in dict(said)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"ema": Foreign()}, "ema"),
        ({"ema": {"decay": 0.9, "shadow_params": [p.detach() for p in Net(2).parameters()]}}, "ema"),
        ({"ema": {name: value for name, value in state(2).items() if "fc" not in name}}, "ema"),
    ],
    ids=["pickled", "without names", "of a part"],
)
def test_an_average_that_cannot_be_taken_is_told_of(more, named, caplog):
    fill, said = taken({"state_dict": state(1), **more}, caplog)
    assert fill == 1
    assert f"holds an average over the training, {named}, which does not fit" in dict(said)["WARNING"]


def test_so_is_one_within_the_same_state_dict(caplog):
    flat = {f"model_ema.{name.replace('.', '')}": value for name, value in state(2).items()}
    _, said = taken({"state_dict": {**state(1, "model."), **flat}}, caplog)
    assert "an average over the training, state_dict.model_ema, which does not fit" in dict(said)["WARNING"]


def test_an_average_of_parameters_alone_comes_with_the_buffers_of_the_others(caplog):
    raw = {**state(1), "f.1.running_mean": torch.full((4,), 7.0)}
    held = {"model": raw, "shadow": {name: value.detach() for name, value in Net(2).named_parameters()}}
    found = fitting_weights(Checkpoint(Path("c.pt"), held), Net(), "nets:Net")
    assert found["fc.weight"].mean() == 2
    assert found["f.1.running_mean"].tolist() == [7] * 4
    assert "come without buffers" in " ".join(text for _, text in taken(held, caplog)[1])


def test_counters_and_strangers_are_named(caplog):
    held = {**state(1, "model."), "model.f.0.total_ops": torch.zeros(1), "criterion.weight": torch.ones(5)}
    _, said = taken(held, caplog)
    text = " ".join(text for _, text in said)
    assert "left out counters that are no weights: f.0.total_ops" in text
    assert "left out what does not begin with 'model.': criterion.weight" in text


def test_what_fits_nowhere_is_said_of_the_closest(caplog):
    held = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "net": {**state(1), "fc.bias": torch.ones(7)}}
    with pytest.raises(ModelLoadError, match=r'`arch="nets:Net"`: entry net has other shapes: fc.bias is \(7,\)'):
        taken(held, caplog)


def test_of_whole_networks_the_averaged_one_is_taken(caplog):
    net, ema = Net(1), Net(2)
    assert whole_network(Checkpoint(Path("c.pt"), {"model": net, "ema": ema, "loss": nn.MSELoss()})) is ema
    assert "took 'ema', the average over the training, and not 'model': `entry=\"model\"`" in caplog.text
    assert whole_network(Checkpoint(Path("c.pt"), {"model": net, "ema": None})) is net
    with pytest.raises(ModelLoadError, match=r"several sets of weights.*: generator, critic"):
        whole_network(Checkpoint(Path("c.pt"), {"generator": net, "critic": ema}))

import pytest
import torch
from torch import nn

from graphprune.formats.fitting import Network, common_wrappers


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)


def best(state, net=None):
    return Network(net or Net()).fits((), state)[0]


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "_orig_mod.", "net.encoder.module._orig_mod."]
)
def test_one_prefix_goes_where_the_names_then_fit(prefix):
    own = Net().state_dict()
    fit = best({prefix + name: value for name, value in own.items()})
    assert fit.is_whole
    assert (fit.prefix, fit.keys) == (prefix, tuple(prefix.split(".")[:-1]))
    assert fit.state.keys() == own.keys()
    assert fit.beside == fit.counters == fit.wrappers == ()


def test_a_prefix_stays_where_it_is_the_networks_own():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.module = nn.Linear(2, 2), nn.Linear(2, 2)

    own = Owner().state_dict()
    assert best(own, Owner()).prefix == ""
    assert best({f"module.{name}": value for name, value in own.items()}, Owner()).state.keys() == own.keys()


def test_what_stands_beside_the_prefix_is_not_the_networks():
    state = {f"model.{name}": value for name, value in Net().state_dict().items()}
    fit = best({**state, "criterion.weight": torch.ones(5), "step": torch.tensor(3), "total_ops": torch.zeros(1)})
    assert fit.is_whole
    assert fit.beside == ("criterion.weight",)


def test_parts_that_were_wrapped_on_their_own():
    """As torch.nn.DataParallel around `features` alone, torch.compile or FSDP of some blocks."""
    own = Net().state_dict()
    for old, new in (("f.", "f.module."), ("fc.", "_checkpoint_wrapped_module.fc._orig_mod.")):
        fit = best({name.replace(old, new): value for name, value in own.items()})
        assert fit.is_whole
        assert fit.state.keys() == own.keys()
        assert fit.wrappers


def test_counters_are_left_out_and_named():
    state = {**Net().state_dict(), "total_ops": torch.zeros(1), "f.0.total_params": torch.zeros(1)}
    fit = best(state)
    assert fit.is_whole
    assert fit.counters == ("f.0.total_params", "total_ops")
    assert best({**state, "f.0.scale": torch.zeros(1)}).unknown == ("f.0.scale",)


def test_several_sets_in_one_state_dict_are_all_found():
    state = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in Net().state_dict().items()}
    assert {fit.name for fit in Network(Net()).fits(("s",), state) if fit.is_whole} == {"s.student", "s.teacher"}


def test_problems_are_those_of_the_closest():
    fit = best({f"model.{name}": value for name, value in Net(7).state_dict().items() if name != "f.0.bias"})
    assert not fit.is_whole
    assert fit.problems() == (
        "lacks f.0.bias; it has other shapes: fc.weight is (7, 4) and must be (5, 4), fc.bias is (7,) and must be (5,)"
    )


def test_an_average_of_parameters_gets_the_buffers_of_another():
    averaged = {name: torch.zeros_like(value) for name, value in Net().named_parameters()}
    fit, whole = best(averaged), best(Net().state_dict())
    assert not fit.is_whole
    assert fit.lacks_buffers_alone
    done = fit.completed(whole)
    assert done.is_whole
    assert done.state["f.1.running_var"].tolist() == [1, 1, 1, 1]
    assert done.state["fc.weight"].sum() == 0
    averaged.pop("fc.bias")
    assert not best(averaged).lacks_buffers_alone


def test_wrappers_of_a_network_that_nobody_knows():
    assert common_wrappers({"module._orig_mod.a.w": 1, "module._orig_mod.b": 2}) == (
        {"a.w": 1, "b": 2},
        "module._orig_mod.",
    )
    assert common_wrappers({"module.a": 1, "n": 2}) == ({"module.a": 1, "n": 2}, "")

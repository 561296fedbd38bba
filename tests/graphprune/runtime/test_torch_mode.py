import pytest
import torch
from torch import nn

from graphprune.runtime.torch_mode import evaluation, torch_threads


def mixed():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    module[1].eval()
    return module


def test_everything_is_in_evaluation_mode_inside_and_as_before_after():
    module = mixed()
    with evaluation(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False, True]


def test_modes_come_back_after_an_error():
    module = mixed()

    def fail():
        with evaluation(module):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in module.modules()] == [True, True, False, True]


def test_the_module_of_an_exported_program_is_left_as_it_is():
    program = torch.export.export(mixed().eval(), (torch.randn(2, 3, 4, 4),))
    module = program.module()
    before = [part.training for part in module.modules()]
    with evaluation(module) as inside:
        assert inside(torch.randn(2, 3, 4, 4)).shape == (2, 4, 4, 4)
    assert [part.training for part in module.modules()] == before


def test_captured_graphs_switch_their_operators():
    from graphprune.passes.fx.capture import capture

    module = capture(mixed(), (torch.randn(2, 3, 4, 4),)).train()
    x = torch.randn(8, 3, 4, 4)
    assert not torch.equal(module(x), module(x))
    with evaluation(module):
        assert torch.equal(module(x), module(x))
    assert not torch.equal(module(x), module(x))


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with torch_threads(0):
        assert torch.get_num_threads() == before

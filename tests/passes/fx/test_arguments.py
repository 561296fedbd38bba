"""Arguments of programs that are no tensors: they are no inputs, and what is computed is what they say."""

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.arguments import arguments_of
from graphprune.passes.fx.capture import capture, module_of


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x, mode="logits", double=False, times=2, mask=None, *, shift=None, options=None):
        x = self.conv(x) * times
        x = x if mask is None else x * mask
        x = x if shift is None else x + shift
        if mode == "features":
            return x
        return self.fc(x.mean((2, 3))) * (2 if double else 1) * (options or {}).get("scale", 1)


X = torch.rand(2, 3, 8, 8)
SHIFT = torch.rand(2, 6, 6, 6)


@pytest.mark.parametrize(
    ("args", "kwargs", "number"),
    [
        ((X, "logits", True, 3, None), {}, 1),
        ((X,), {"double": True, "times": 5}, 1),
        ((X,), {"mode": "features", "shift": SHIFT}, 2),
        ((X, "logits"), {"options": {"scale": 3, "more": None}}, 1),
        ((X, "features", False, 1, SHIFT), {"shift": SHIFT}, 3),
    ],
)
def test_what_is_left_are_tensors_by_position(args, kwargs, number):
    net = Flagged().eval()
    program = torch.export.export(net, args, kwargs)
    arguments = arguments_of(program)
    inputs = arguments.inputs(args, kwargs)
    assert len(inputs) == number
    assert all(isinstance(x, torch.Tensor) for x in inputs)
    for module in (module_of(program), capture(program)):
        assert torch.allclose(module(*inputs), net(*args, **kwargs), atol=1e-6)
    assert arguments.inputs(inputs[:1]) == inputs[:1]  # what is no whole call is taken for inputs


def test_a_program_from_a_file_has_its_values(tmp_path):
    net = Flagged().eval()
    torch.export.save(torch.export.export(net, (X, "logits", True)), tmp_path / "m.pt2")
    loaded = gp.load(tmp_path / "m.pt2")
    assert torch.allclose(loaded(X), net(X, "logits", True), atol=1e-6)
    with pytest.raises(TypeError):
        loaded(X, "features")


def test_without_such_arguments_nothing_changes():
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2)), (torch.rand(2, 3),))
    arguments = arguments_of(program)
    assert (arguments.positional, arguments.named) == ((True,), {})
    assert module_of(program)(torch.ones(2, 3)).shape == (2, 2)


def test_a_module_is_captured_with_the_flags_of_its_example():
    net = Flagged().eval()
    captured = capture(net, (X, "logits", True))
    assert len(captured.example_inputs) == 1
    assert captured.inputs_of((X, "logits", True)) == (X,)
    assert torch.allclose(captured(X), net(X, "logits", True), atol=1e-6)


@pytest.mark.parametrize("form", ["module", "program"])
def test_slim_and_mask_go_on_from_there(form):
    net, call = Flagged().eval(), (X, "logits", True)
    model = net if form == "module" else torch.export.export(net, call)
    plan = gp.plan(gp.trace(model, None if form == "program" else call), ratio=0.5)
    slim, masked = gp.slim(model, plan, call), gp.mask(model, plan)
    own = call if form == "module" else (X,)  # a module keeps its own forward
    assert torch.allclose(slim(*own), masked(*own), atol=1e-5)
    assert slim.get_parameter("conv.weight").shape[0] == 3
    assert masked.get_parameter("conv.weight").shape[0] == 6
    assert torch.equal(net.conv.weight, Flagged().conv.weight)


def test_a_program_without_examples_asks_for_them():
    program = torch.export.export(Flagged().eval(), (X, "logits"))
    program._example_inputs = None
    with pytest.raises(CaptureError, match="carries no example inputs"):
        capture(program)
    assert capture(program, (X, "logits")).example_inputs[0].shape == X.shape

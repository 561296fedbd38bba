import pytest
import torch
from torch import fx, nn

from graphprune.passes.fx.capture import capture
from graphprune.runtime import precision
from graphprune.runtime.precision import Precision, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"float32": 1.0, "float32, channels last": 0.9, "bfloat16 autocast, channels last": 0.5}, (True, True)),
        ({"float32": 1.0, "float32, channels last": 0.9, "bfloat16 autocast, channels last": 0.8}, (False, True)),
        ({"float32": 1.0, "float32, channels last": 1.1, "bfloat16 autocast, channels last": 1.0}, (False, True)),
        ({"float32": 1.0, "float32, channels last": 2.0, "bfloat16 autocast": 1.0}, (False, False)),
        ({"float32": 1.0, "float32, channels last": 2.0, "bfloat16 autocast": 0.4}, (True, False)),
    ],
)
def test_only_a_clear_difference_decides(monkeypatch, seconds, expected):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_seconds", lambda step, candidates, device: seconds)
    chosen, measured = choose_precision("auto", lambda _: None, CPU)
    assert (chosen.bfloat16, chosen.channels_last) == expected
    assert measured == seconds


@pytest.mark.parametrize(("setting", "half"), [("float32", False), ("bfloat16", True)])
def test_a_fixed_format_is_not_measured(setting, half):
    assert choose_precision(setting, lambda _: pytest.fail("measured"), CPU) == (Precision(bfloat16=half), {})


def test_the_layout_changes_and_the_values_stay():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
    weight, before = net[0].weight, net[0].weight.detach().clone()
    Precision(channels_last=True).convert_(fx.symbolic_trace(net))
    assert net[0].weight is weight
    assert torch.equal(weight, before)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert Precision(channels_last=True).images(torch.ones(2, 3, 4, 4)).stride() == (48, 1, 12, 3)
    assert Precision(**Precision(channels_last=True).to_dict()) == Precision(channels_last=True)


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_of_one_channel_does_not_end_channels_last(training):
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 16, 3), nn.ReLU()]
    images = torch.randn(4, 3, 12, 12)
    module = capture(nn.Sequential(*layers).eval(), (images,))
    precision = Precision(channels_last=True)
    precision.convert_(module)
    out = module.train(training)(precision.images(images))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("supported", [False, True])
def test_bfloat16_is_tried_only_where_the_cpu_has_it(monkeypatch, supported):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: supported)
    tried = []
    choose_precision("auto", tried.append, CPU)
    assert any(candidate.bfloat16 for candidate in tried) == supported


def test_candidates_are_measured_by_the_work_they_take(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)

    def step(candidate):
        x = torch.ones(300, 300)
        for _ in range(30 if candidate.channels_last else 3):
            x = x @ x

    chosen, seconds = choose_precision("auto", step, CPU)
    assert not chosen.channels_last
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds.values())


def test_autocast_is_on_when_asked_for():
    x = torch.randn(4, 4)
    with Precision(bfloat16=True).autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Precision().autocast():
        assert (x @ x).dtype == torch.float32

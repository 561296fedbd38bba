"""Training on another device than the CPU. See tests/other_device.py for what stands in for one."""

import dataclasses

import numpy as np
import pytest
import torch
from digit_runs import SETTINGS, Net, TwoOutputs, images
from torch import nn

import graphprune as gp
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.device import device_of, to_device
from graphprune.runtime.device import resolve_device
from graphprune.training.engine import Engine
from graphprune.verification.verify import compare
from tests.other_device import NAME, other_device

SHORT = dataclasses.replace(SETTINGS, epochs=1.5, holdout=32, calibration_images=64, eval_every=100)
pytestmark = pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # it is copied


def run(device, config=SHORT, kind=Net, **options):
    torch.manual_seed(0)
    teacher = capture(kind().eval(), (torch.randn(2, 1, 8, 8),))
    config = dataclasses.replace(config, device=device)
    with other_device():
        engine = Engine(teacher, analyze(teacher), images(320), config, **options)
        results = engine.run()
    return engine, results


@pytest.fixture(scope="module")
def at_home():
    return run("cpu")


def test_another_device_gives_the_same_result(at_home):
    engine, (away,) = run(NAME)
    (home,) = at_home[1]
    assert device_of(engine.students[0].module).type == device_of(engine.teacher.module).type == NAME
    assert away.plan.removed.keys() == home.plan.removed.keys()
    assert (away.removed == home.removed).all()
    assert away.agreement == home.agreement
    for name, tensor in away.state_dict.items():
        assert type(tensor) is torch.Tensor
        torch.testing.assert_close(tensor, home.state_dict[name])


@pytest.mark.parametrize("start", ["cpu", NAME])
def test_a_run_is_resumed_there(at_home, tmp_path, start):
    path = tmp_path / "checkpoint.pt"
    config = dataclasses.replace(SHORT, checkpoint_steps=7)

    def stop(step, *_):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(start, config, checkpoint=path, progress=stop)
    teacher = capture(at_home[0].teacher.module)
    with other_device():
        engine = Engine(
            teacher, at_home[0].graph, images(320), dataclasses.replace(config, device=NAME), checkpoint=path
        )
        (resumed,) = engine.run(resume=True)
    assert device_of(engine.students[0].module).type == device_of(engine.teacher.module).type == NAME
    (home,) = at_home[1]
    assert (resumed.removed == home.removed).all()
    for name, tensor in resumed.state_dict.items():
        torch.testing.assert_close(tensor, home.state_dict[name])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sensitivity": "bn_scale"}, marks=pytest.mark.slow),
        pytest.param({"sensitivity": "fpgm"}, marks=pytest.mark.slow),
        {"sensitivity": "entropy"},
        pytest.param({"sensitivity": "hrank"}, marks=pytest.mark.slow),
        {"sensitivity": "l1", "course": "one-shot"},
        {"n_students": 2, "macs": (0.6, 0.4)},
        {"shrink": False, "precision": "auto"},
        pytest.param({"sigma": 1.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_way_of_running_works_there(changes):
    _, results = run(NAME, dataclasses.replace(SHORT, epochs=1.3, **changes))
    assert all(result.cost["macs"] < 0.61 for result in results)


def test_dense_prediction_works_there():
    _, (result,) = run(NAME, dataclasses.replace(SHORT, epochs=1.3), kind=TwoOutputs)
    assert result.cost["macs"] <= 0.5


def test_a_loop_of_your_own_on_another_device():
    torch.manual_seed(0)
    net, example = Net(), torch.randn(4, 1, 8, 8)
    with other_device():
        net = net.to(NAME)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        pruner = gp.SparseTrainer(net, (example,), macs=0.5, steps=20, optimizer=optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            torch.autograd.backward(net(example.to(NAME)).square().mean())
            optimizer.step()
            pruner.step()
        slim = pruner.finish()
        assert device_of(slim).type == NAME
        assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in net.parameters())
        expected, found = net.eval()(example.to(NAME)).cpu(), slim.eval()(example.to(NAME)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class MakesTensors(nn.Module):
    """Its graph makes a tensor, and holds one that is no buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.offset = torch.linspace(0, 1, 4).view(4, 1, 1)

    def forward(self, x):
        return self.layer(x) + self.offset.to(x.device) + torch.arange(4, device=x.device).view(4, 1, 1)


def test_what_a_graph_makes_itself_is_made_where_the_graph_is():
    x = torch.randn(2, 3, 5, 5)
    captured = capture(MakesTensors(), (x,))
    expected = captured(x)
    with other_device():
        moved = to_device(captured, torch.device(NAME))
        torch.testing.assert_close(moved(x.to(NAME)).cpu(), expected)


def test_a_model_that_is_there_is_captured_on_the_cpu():
    net, x = Net().eval(), torch.randn(2, 1, 8, 8)
    expected = net(x)
    with other_device():
        captured = capture(net.to(NAME), (x,))
    assert device_of(captured).type == "cpu"
    torch.testing.assert_close(captured(x), expected)


def test_looking_at_a_model_leaves_it_where_it_is(monkeypatch):
    """Moving a module moves its parameters in place, also those that a graph shares with it."""
    moved = []

    def move(module, device):
        moved.extend(id(p) for p in module.parameters())
        return to_device(module, device)

    monkeypatch.setattr("graphprune.passes.fx.capture.to_device", move)
    net = Net().eval()
    with other_device():
        net = net.to(NAME)
        capture(net, (torch.randn(2, 1, 8, 8),), share=True)
    assert moved
    assert not {id(p) for p in net.parameters()} & set(moved)


def test_a_model_that_is_there_is_exported_and_verified(tmp_path):
    net, x = Net().eval(), torch.randn(2, 1, 8, 8)
    with other_device():
        net = net.to(NAME)
        path = gp.export_onnx(net, (x.to(NAME),), tmp_path / "net.onnx")
        assert device_of(net).type == NAME
        assert compare(net, path, (x,)).equal


def test_an_engine_of_its_own_meets_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("graphprune.training.processes._initialize", lambda _: pytest.fail("waits for others"))
    teacher = capture(Net().eval(), (torch.randn(2, 1, 8, 8),))
    assert Engine(teacher, analyze(teacher), images(320), SHORT).processes.world == 1


def test_the_cpu_is_taken_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UsageError, match=f"`device={name!r}` cannot be used here") as caught:
        gp.compress(Net(), np.zeros((4, 1, 8, 8), np.float32), config=dataclasses.replace(SETTINGS, device=name))
    assert "\n" not in str(caught.value)

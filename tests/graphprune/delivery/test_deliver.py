import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import graphprune as gp
from graphprune.config import CompressConfig
from graphprune.data import ImageSource, Preprocess
from graphprune.delivery import deliver as delivery
from graphprune.delivery.deliver import Delivery
from graphprune.passes.errors import UnsupportedModelError, VerificationError
from graphprune.passes.fx.capture import capture


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def run():
    """An engine and its result, without a training: the planned channels of the teacher are set to zero."""
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(16, 1, 6, 6))
    pixels = np.random.default_rng(0).random((40, 6, 6, 1)).astype(np.float32)
    source = ImageSource(pixels, Preprocess((6, 6), (0.5,), (0.5,), 1))
    captured = capture(net.eval(), (torch.from_numpy(source.batch(slice(0, 4))),))
    graph = gp.trace(captured)
    plan = gp.plan(graph, macs=0.5)
    engine = SimpleNamespace(graph=graph, held_out=source, config=CompressConfig(macs=0.5), sparsity=None)
    state = gp.mask(captured, plan).state_dict()
    return engine, SimpleNamespace(number=0, state_dict=state, plan=plan, removed=graph.removed_by(plan))


def deliver(run, folder):
    engine, result = run
    found = Delivery(engine, folder)
    found.rehearse()
    found.cut(result).verify()
    return found


@pytest.fixture(scope="module")
def delivered(run, tmp_path_factory):
    return deliver(run, tmp_path_factory.mktemp("delivered"))


@pytest.fixture
def exporting(monkeypatch, delivered):
    """Replaces the export by a copy of what was exported, to save time; `change` may spoil one of the files."""
    spoiled = []

    def copy(model, inputs, path, **options):
        shutil.copy(delivered.folder / path.name, path)
        if path.name in spoiled:
            change_one_weight(path)

    monkeypatch.setattr(delivery, "export_onnx", copy)
    return spoiled.append


def change_one_weight(path):
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda item: len(item.dims))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.01 * np.abs(values).max()
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_every_form_computes_what_the_student_does(delivered):
    folder, comparisons = delivered.folder, delivered.comparisons
    assert {file.name for file in folder.iterdir()} == {"dense.onnx", "slim.onnx", "slim.pt2", "plan.json"}
    assert list(comparisons) == [
        "dense.onnx against the model",
        "the masked model against the trained model",
        "the slim model against the masked model",
        "slim.onnx against the masked model",
        "slim.pt2 against the masked model",
    ]
    assert all(found.samples == 40 and found.worst.error < 1e-5 for found in comparisons.values())
    notes = {item.key: item.value for item in onnx.load(folder / "slim.onnx").metadata_props}
    assert '"mean": [0.5]' in notes["graphprune_preprocessing"]


@pytest.mark.parametrize("name", ["dense.onnx", "slim.onnx"])
def test_one_changed_weight_in_a_file_is_noticed(run, tmp_path, exporting, name):
    exporting(name)
    with pytest.raises(VerificationError, match=f"{name} does not compute"):
        deliver(run, tmp_path)


def test_an_archive_of_another_model_is_noticed(run, tmp_path, exporting, monkeypatch):
    dense = run[0].graph.front_end.module
    monkeypatch.setattr(delivery, "save", lambda model, path: gp.save(dense, path))
    with pytest.raises(VerificationError, match=r"slim\.pt2 does not compute"):
        deliver(run, tmp_path)


def test_channels_that_the_training_left_above_zero_are_noticed(run, tmp_path, exporting):
    engine, result = run
    dense = engine.graph.front_end.module.state_dict()
    trained = SimpleNamespace(number=0, state_dict=dense, plan=result.plan, removed=result.removed)
    with pytest.raises(VerificationError, match="masked model does not compute what the trained model"):
        deliver((engine, trained), tmp_path)


def test_a_count_that_the_file_does_not_have_is_noticed(run, tmp_path, exporting, monkeypatch):
    cost = delivery.onnx_cost
    more = lambda path, **sizes: SimpleNamespace(macs=cost(path, **sizes).macs + 1, uncounted=())  # noqa: E731
    monkeypatch.setattr(delivery, "onnx_cost", more)
    with pytest.raises(VerificationError, match="multiply-accumulates"):
        deliver(run, tmp_path)


class Residual(Net):
    """Its block may go as a whole."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        )

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head((x + self.block(x)).mean((2, 3)))


def test_a_branch_that_goes_as_a_whole_is_delivered_and_counted(run, tmp_path):
    torch.manual_seed(0)
    captured = capture(Residual().eval(), (torch.zeros(2, 1, 6, 6),))
    graph = gp.trace(captured)
    removed = graph.set_of == next(s.index for s in graph.sets if s.bypassed)
    plan = graph.plan(removed)
    engine = SimpleNamespace(**{**vars(run[0]), "graph": graph})
    state = gp.mask(captured, plan).state_dict()
    found = deliver((engine, SimpleNamespace(number=0, state_dict=state, plan=plan, removed=removed)), tmp_path)
    names = dict(found.members[0].model.named_parameters())
    assert not any(name.startswith("block") for name in names)
    assert delivery.count_parameters(found.members[0].model) == delivery.count_parameters(Net())
    assert delivery.onnx_cost(found.files["slim"]).macs == 36 * 8 * 9 + 8 * 4


def test_what_has_no_onnx_form_is_refused_before_any_training(run, tmp_path):
    class Odd(Net):
        def forward(self, x):
            return torch.special.airy_ai(super().forward(x))

    captured = capture(Odd().eval(), (torch.zeros(2, 1, 6, 6),))
    engine = SimpleNamespace(**{**vars(run[0]), "graph": gp.trace(captured)})
    with pytest.raises(UnsupportedModelError, match="airy_ai"):
        Delivery(engine, tmp_path).rehearse()


class LowRank(Net):
    """A weight that is made of a product of others, and a map of positions that a network computes from constants."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(4, 2))
        self.register_buffer("at", torch.randn(36, 2))
        self.positions = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = x + self.positions(self.at).t().reshape(1, 8, 6, 6)
        return nn.functional.linear(x.mean((2, 3)), self.head.weight + self.up @ self.down)


def rehearsed(module, run, folder):
    torch.manual_seed(0)
    graph = gp.trace(capture(module.eval(), (torch.zeros(2, 1, 6, 6),)))
    found = Delivery(SimpleNamespace(**{**vars(run[0]), "graph": graph}), folder)
    found.rehearse()
    return graph


def test_what_is_computed_from_weights_alone_costs_nothing(run, tmp_path, caplog):
    graph = rehearsed(LowRank(), run, tmp_path)
    assert graph.cost.dense["macs"] == 36 * 8 * 9 + 4 * 8
    assert "were counted on the graph" not in caplog.text


class Dropped(Net):
    """A classifier after several dropouts: the same, in inference."""

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return sum(self.head(torch.dropout(x, p, self.training)) for p in (0.1, 0.2))


def test_layers_that_compute_the_same_cost_what_one_does(run, tmp_path, caplog):
    """The exporter merges them, and so do runtimes."""
    graph = rehearsed(Dropped(), run, tmp_path)
    assert graph.cost.dense["macs"] == 36 * 8 * 9 + 4 * 8
    assert "were counted on the graph" not in caplog.text

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.passes.errors import CaptureError, GraphPruneError, ModelLoadError, OutputExistsError
from graphprune.passes.fx.captured import CapturedModule


class Net(nn.Module):
    """Has a shape in its own Python, so that its slim form is a captured graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8 * 16, 5)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).reshape(-1, 8 * 16)))


INPUTS = (torch.zeros(2, 3, 4, 4),)


@pytest.fixture
def slim():
    model = Net()
    model(torch.randn(8, 3, 4, 4))  # statistics that are not the initial ones
    return gp.slim(model.eval(), gp.plan(gp.trace(model, INPUTS), ratio=0.5), INPUTS)


def test_a_slim_model_comes_back_without_its_class(slim, tmp_path):
    assert isinstance(slim, CapturedModule)
    loaded = gp.load(gp.save(slim, tmp_path / "slim.pt2"))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 4, 4)
        torch.testing.assert_close(loaded(x), slim(x))
    assert loaded.state_dict().keys() == slim.state_dict().keys()
    assert loaded.get_parameter("conv.weight").shape == (4, 3, 3, 3)


def test_what_comes_back_can_be_trained_cut_again_and_exported(slim, tmp_path):
    loaded = gp.load(gp.save(slim, tmp_path / "slim.pt2"))
    before = loaded.get_buffer("norm.running_mean").clone()
    loaded.train()
    x = torch.randn(6, 3, 4, 4)
    assert not torch.equal(loaded(x), loaded(x))  # dropout is on
    loaded(x).square().mean().backward()
    assert loaded.get_parameter("conv.weight").grad.abs().sum() > 0
    assert not torch.equal(loaded.get_buffer("norm.running_mean"), before)
    loaded.eval()
    again = gp.slim(loaded, gp.plan(gp.trace(loaded), ratio=0.5))
    assert again.get_parameter("conv.weight").shape[0] == 2
    gp.export_onnx(again, (x,), tmp_path / "again.onnx")


def test_a_module_needs_example_inputs(tmp_path):
    with pytest.raises(CaptureError, match="example_inputs are needed"):
        gp.save(Net(), tmp_path / "net.pt2")
    loaded = gp.load(gp.save(Net().eval(), tmp_path / "net.pt2", INPUTS))
    assert loaded(torch.zeros(3, 3, 4, 4)).shape == (3, 5)


def test_saving_does_not_touch_the_model(tmp_path):
    model = Net().train()
    gp.save(model, tmp_path / "net.pt2", INPUTS)
    assert model.training
    assert model.drop.training


def test_an_existing_file_stays_unless_force(slim, tmp_path):
    path = tmp_path / "slim.pt2"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="`force=True`"):
        gp.save(slim, path)
    assert path.read_bytes() == b"mine"
    gp.save(slim, path, force=True)
    assert gp.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["slim.pt2"]


def test_a_full_disk_is_one_line(slim, tmp_path, fill_disk):
    path = gp.save(slim, tmp_path / "slim.pt2")
    before = path.read_bytes()
    fill_disk()
    with pytest.raises(GraphPruneError, match=r"slim\.pt2: the disk is full"):
        gp.save(slim, path, force=True)
    assert path.read_bytes() == before


def test_other_suffixes_are_refused(slim, tmp_path):
    with pytest.raises(CaptureError, match=r"must end in \.pt2"):
        gp.save(slim, tmp_path / "slim.pt")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_saved_model_are_one_line_errors(slim, tmp_path):
    text, cut, onnx = (tmp_path / name for name in ("text.pt2", "cut.pt2", "net.onnx"))
    text.write_text("hello")
    cut.write_bytes(gp.save(slim, tmp_path / "whole.pt2").read_bytes()[:3000])
    onnx.write_bytes(b"")
    reasons = {
        tmp_path / "none.pt2": "no such file",
        tmp_path: "is a folder",
        text: "archive",
        cut: "archive",
        onnx: "ONNX",
    }
    for path, reason in reasons.items():
        with pytest.raises(ModelLoadError, match=reason) as caught:
            gp.load(path)
        assert "\n" not in str(caught.value)

import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from graphprune.errors import ModelLoadError, UsageError
from graphprune.formats.loading import load_model, load_weights
from graphprune.models import resnet20
from graphprune.verification.verify import require_equal

ARCH = "graphprune.models:resnet20"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet20().eval()


def same(loaded: nn.Module, model: nn.Module) -> bool:
    own = model.state_dict()
    return all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())


def test_safetensors_and_state_dict_load_strictly(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("m.safetensors", "m.pt", "old.pth"):
        loaded = load_model(tmp_path / name, arch=ARCH)
        assert same(loaded, model)
        assert not loaded.training


def test_half_precision_becomes_float32(model, tmp_path):
    halves = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    loaded = load_model(tmp_path / "half.safetensors", arch=ARCH)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.conv1.weight, model.conv1.weight.half().float())


@pytest.mark.parametrize("key", ["state_dict", "model", "params"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", ""])
def test_checkpoints_of_training_scripts_are_unwrapped_and_said_so(model, tmp_path, caplog, key, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1}}, tmp_path / "c.pt")
    with caplog.at_level(logging.INFO, logger="graphprune"):
        assert same(load_model(tmp_path / "c.pt", arch=ARCH), model)
    assert f"took the entry '{key}'" in caplog.text
    assert ("off the names of the parameters" in caplog.text) == bool(prefix)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_goes_from_every_kind_of_file(model, tmp_path, prefix):
    save_file({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "m.safetensors")
    assert same(load_model(tmp_path / "m.safetensors", arch=ARCH), model)
    assert load_weights(tmp_path / "m.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["last.ckpt", "pytorch_model.bin", "best.pth.tar"])
def test_what_trainers_call_their_files(model, tmp_path, name):
    torch.save({"state_dict": model.state_dict(), "loops": {"fit_loop": {"state_dict": {}}}}, tmp_path / name)
    assert same(load_model(tmp_path / name, arch=ARCH), model)


def test_an_entry_is_taken_by_its_name(model, tmp_path):
    other = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save({"ema": {"module": other}, "model": model.state_dict()}, tmp_path / "c.pt")
    assert same(load_model(tmp_path / "c.pt", arch=ARCH, entry="model"), model)
    assert load_model(tmp_path / "c.pt", arch=ARCH, entry="ema.module").conv1.weight.abs().sum() == 0
    with pytest.raises(UsageError, match=r"no entry best: sets of weights in it are ema\.module, model$"):
        load_model(tmp_path / "c.pt", arch=ARCH, entry="best")


def test_weights_in_several_files_that_an_index_lists(model, tmp_path):
    state = model.state_dict()
    parts = {"a-1.safetensors": [*state][:30], "a-2.safetensors": [*state][30:]}
    for name, held in parts.items():
        save_file({key: state[key] for key in held}, tmp_path / name)
    places = {key: name for name, held in parts.items() for key in held}
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same(load_model(index, arch=ARCH), model)
    (tmp_path / "a-2.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no such file: .*a-2\.safetensors"):
        load_model(index, arch=ARCH)
    for text, message in (
        ('{"weight_map": {"a": "../b.bin"}}', "is no file beside it"),
        ('{"weight_map": 3}', "no readable index"),
        ("[1]", "no readable index"),
        ("{", "no readable index"),
    ):
        index.write_text(text)
        with pytest.raises(ModelLoadError, match=message):
            load_model(index, arch=ARCH)


def test_shared_parameter_may_be_stored_once_and_counters_may_lack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tied_net.py").write_text(
        "from torch import nn\nclass Tied(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(3, 3)\n        self.b = self.a\n        self.n = nn.BatchNorm1d(3)\n"
    )
    state = {"a.weight": torch.ones(3, 3), "a.bias": torch.ones(3), "n.weight": torch.ones(3), "n.bias": torch.ones(3)}
    state |= {"n.running_mean": torch.ones(3), "n.running_var": torch.ones(3)}
    torch.save(state, "t.pt")
    assert load_model("t.pt", arch="tied_net:Tied").b.bias.tolist() == [1, 1, 1]


def test_pickled_module_needs_permission(model, tmp_path, caplog):
    path = tmp_path / "module.pt"
    torch.save({"model": nn.DataParallel(model).double().train()}, path)
    with pytest.raises(ModelLoadError, match=r"pickle of more than tensors .*trust_pickle=True") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    loaded = load_model(path, trust_pickle=True)
    assert "it may run any code" in caplog.text
    assert type(loaded).__name__ == "CifarResNet"
    assert not loaded.training
    assert loaded.conv1.weight.dtype == torch.float32
    with pytest.raises(UsageError, match="holds a whole model"):
        load_model(path, arch=ARCH, trust_pickle=True)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_pickle_runs_without_permission(tmp_path, zipped):
    marker = tmp_path / "ran"
    torch.save({"a": RunsCode(str(marker))}, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelLoadError, match="trust_pickle=True"):
        load_model(tmp_path / "bad.pt", arch=ARCH)
    assert not marker.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(str(marker))))
    with pytest.raises(ModelLoadError):
        load_model(tmp_path / "plain.pt", arch=ARCH)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (None, 'holds weights without a network: .* `arch="graphprune'),
        ("graphprune.models:resnet32", r"it lacks layer1\.3\.conv1\.weight, .* and 57 more"),
        (
            "graphprune.models:resnet20(num_classes=7)",
            r"shapes: linear\.weight is \(10, 64\) and must be \(7, 64\)",
        ),
        ("graphprune.models:vgg_small", r"it has the unknown conv1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, tmp_path, arch, message):
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_model(tmp_path / "m.pt", arch=arch)
    assert "\n" not in str(caught.value)


def test_unused_weights_are_an_error_too(model, tmp_path):
    torch.save({**model.state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(ModelLoadError, match=r"it has the unknown extra\.weight"):
        load_model(tmp_path / "m.pt", arch=ARCH)


def test_files_that_are_no_models(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    contents = {
        "text.pt": b"hello",
        "empty.pt": b"",
        "cut.pt": (tmp_path / "whole.pt").read_bytes()[:20000],
        "junk.pth": b"\x80\x02junk",
        "text.safetensors": b"hello, this is no safetensors file",
        "text.pt2": b"hello",
        "m.h5": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "numbers.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    (tmp_path / "folder.pt").mkdir()
    for name, message in {
        "text.pt": "was not written by torch.save",
        "empty.pt": "was not written by torch.save",
        "cut.pt": "is broken or cut short",
        "junk.pth": "is broken or cut short",
        "text.safetensors": "is no readable safetensors file",
        "text.pt2": "is no torch.export archive, or is cut short",
        "m.h5": "has no known suffix",
        "list.pt": "holds a list, neither",
        "numbers.pt": "holds a dict with the entries epoch, best, neither",
        "script.pt": "is a TorchScript archive: .*torch.onnx.export.*dynamo=False",
        "folder.pt": "is a folder",
        "absent.pt": "no such file",
    }.items():
        with pytest.raises(ModelLoadError, match=message) as caught:
            load_model(tmp_path / name, arch=None if name.endswith("pt2") else ARCH)
        assert "\n" not in str(caught.value), name


@pytest.mark.filterwarnings("ignore")
def test_the_advice_on_torchscript_archives_holds(tmp_path):
    """torch's older exporter writes one as ONNX, which its newer one and torch.export refuse."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.jit.save(torch.jit.script(net), str(tmp_path / "script.pt"))
    loaded, x = torch.jit.load(str(tmp_path / "script.pt")), torch.rand(1, 3, 8, 8)
    torch.onnx.export(loaded, (x,), str(tmp_path / "m.onnx"), dynamo=False)
    assert require_equal(net, tmp_path / "m.onnx", x).equal
    with pytest.raises(ValueError, match="ScriptModule is not supported"):
        torch.export.export(loaded, (x,))


def test_weights_of_no_known_network(model, tmp_path):
    torch.save({"model": {}, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, tmp_path / "o.pt")
    with pytest.raises(ModelLoadError, match="neither a state dict nor a module"):
        load_weights(tmp_path / "o.pt")
    torch.save({"a": {"w": torch.ones(3)}, "b": {"w": torch.zeros(3)}}, tmp_path / "two.pt")
    with pytest.raises(ModelLoadError, match=r"several sets of weights.*: a, b;"):
        load_weights(tmp_path / "two.pt")
    torch.save({"a": {"w": torch.ones(3)}, "b_ema": {"module.w": torch.zeros(3)}}, tmp_path / "ema.pt")
    assert load_weights(tmp_path / "ema.pt")["w"].tolist() == [0, 0, 0]

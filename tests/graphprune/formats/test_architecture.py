import sys

import pytest

from graphprune.errors import ModelLoadError, UsageError
from graphprune.formats.architecture import parse_arch, resolve_arch
from graphprune.models import CifarResNet, MobileNetV2


def test_parts_of_an_architecture():
    plain = parse_arch("my_package.nets:Net")
    assert (plain.module, plain.factory, plain.arguments) == ("my_package.nets", "Net", {})
    called = parse_arch(' graphprune.models:mobilenet_v2( num_classes=10,width=0.5, strides="cifar", x=[-1, None]) ')
    assert called.factory == "mobilenet_v2"
    assert called.arguments == {"num_classes": 10, "width": 0.5, "strides": "cifar", "x": [-1, None]}
    assert parse_arch("a:f()").arguments == {}


@pytest.mark.parametrize(
    "arch",
    [
        "",
        "graphprune.models",
        "graphprune.models:",
        ":resnet20",
        "graphprune models:resnet20",
        "../models:resnet20",
        "graphprune.models:resnet20(",
        "graphprune.models:resnet20(7)",
        "graphprune.models:resnet20(**{})",
        "graphprune.models:resnet20(num_classes=__import__('os'))",
        "graphprune.models:resnet20(num_classes=n)",
        "graphprune.models:resnet20()()",
        "graphprune.models:nets[0]",
        "graphprune.models:1",
    ],
)
def test_malformed_architectures_are_usage_errors_of_one_line(arch):
    with pytest.raises(UsageError, match="`arch=") as caught:
        parse_arch(arch)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_arguments_are_never_evaluated(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(UsageError, match="is no literal"):
        resolve_arch(f"graphprune.models:resnet20(num_classes=open({str(marker)!r}, 'w'))")
    assert not marker.exists()


def test_networks_come_in_evaluation_mode():
    model = resolve_arch("graphprune.models:resnet20")
    assert isinstance(model, CifarResNet)
    assert not model.training
    small = resolve_arch("graphprune.models:mobilenet_v2(num_classes=3, width=0.25)")
    assert isinstance(small, MobileNetV2)
    assert small.classifier[1].out_features == 3


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - names:
        del sys.modules[name]


def test_module_in_the_current_folder_is_found_and_the_path_left_as_it_was(in_folder):
    (in_folder / "their_blocks.py").write_text("from torch import nn\nBlock = nn.ReLU\n")
    (in_folder / "their_net.py").write_text(
        "from torch import nn\n\ndef make(width=4):\n    from their_blocks import Block\n"
        "    return nn.Sequential(nn.Linear(2, width).double(), Block())\n"
    )
    before = list(sys.path)
    model = resolve_arch("their_net:make(width=7)")
    assert model[0].out_features == 7
    assert str(model[0].weight.dtype) == "torch.float32"
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "arch", "message"),
    [
        ("", "absent_net:Net", "there is no module absent_net, neither installed nor in the current folder"),
        ("", "graphprune.absent:Net", r"there is no module graphprune\.absent"),
        ("import absent_too", "broken_net:Net", "importing broken_net failed: .*absent_too"),
        ("def f(:", "broken_net:Net", "importing broken_net failed: SyntaxError"),
        ("raise SystemExit(0)", "broken_net:Net", "importing broken_net failed: SystemExit"),
        ("Other = 1", "broken_net:Net", "has no factory Net; it has Other"),
        ("Net = 1", "broken_net:Net", "has no factory Net"),
        ("def Net(): return {}", "broken_net:Net", "Net gave a dict, not an nn.Module"),
        ("def Net(): raise ValueError('a\\nb')", "broken_net:Net", "calling Net failed: ValueError: a"),
        ("def Net(): pass", "broken_net:Net(depth=3)", "calling Net failed: TypeError"),
    ],
)
def test_modules_and_factories_that_fail_are_one_line(in_folder, text, arch, message):
    (in_folder / "broken_net.py").write_text(text)
    before = list(sys.path)
    with pytest.raises(ModelLoadError, match=message) as caught:
        resolve_arch(arch)
    assert "\n" not in str(caught.value)
    assert sys.path == before

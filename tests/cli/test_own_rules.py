"""Operators of one's own on the command line: rules of a module that is named, and of installed packages."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, library, nn

from graphprune.cli import main
from graphprune.passes.channels.registry import GROUP
from graphprune.passes.channels.rules import RULES, TABLE

FILE = """
<ir_version: 9, opset_import: ["": 18, "com.example": 1]>
net (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] out) {
  a = Conv(x, first)
  b = com.example.Leak(a)
  out = Conv(b, last)
}
<domain: "com.example", opset_import: ["": 18]>
Leak (x) => (y) {
  first = Constant<value_int=0>()
  leaky = LeakyRelu<alpha=0.25>(x)
  all = SequenceConstruct(leaky)
  y = SequenceAt(all, first)
}
"""
ONNX_RULES = """
import graphprune as gp
from graphprune.passes.channels import patterns
gp.register_rule("leak", patterns.elementwise(patterns.first_zero), onnx="com.example::Leak")
"""
TORCH_RULES = """
import graphprune as gp
from graphprune.passes.channels import patterns
gp.register_rule("leak", patterns.elementwise(patterns.first_zero), torch="of_command_line::leak")
"""


@library.custom_op("of_command_line::leak", mutates_args=())
def leak(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x / 4)


@leak.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.ops.of_command_line.leak(self.first(x)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file; what its modules register is taken back."""
    model = onnx.parser.parse_model(FILE)
    rng = np.random.default_rng(0)
    for name, shape in {"first": (4, 3, 1, 1), "last": (2, 4, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("onnx_rules", "torch_rules"):
        sys.modules.pop(name, None)
    for rule, _ in [*TABLE.aten.values(), *TABLE.onnx.values()]:
        if rule not in RULES:
            TABLE.remove(rule)


def inspected(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return found["groups"], list(found["unknown_operators"])


def test_rules_of_a_module_that_is_named(folder, capsys):
    (folder / "onnx_rules.py").write_text(ONNX_RULES)
    groups, unknown = inspected(capsys, "net.onnx")
    assert groups == 0
    assert unknown
    assert inspected(capsys, "net.onnx", "--rules", "onnx_rules") == (4, [])
    assert main(["slim", "net.onnx", "slim.onnx", "--ratio", "0.5", "--rules", "onnx_rules"]) == 0
    slim = onnx.load("slim.onnx")
    assert [node.op_type for node in slim.graph.node] == ["Conv", "Leak", "Conv"]
    assert [tuple(tensor.dims) for tensor in slim.graph.initializer] == [(2, 3, 1, 1), (2, 2, 1, 1)]


def test_an_archive_with_an_operator_of_a_library(folder, capsys):
    (folder / "torch_rules.py").write_text(TORCH_RULES)
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 4, 4),)), folder / "net.pt2")
    assert main(["inspect", "net.pt2"]) == 1
    assert "an operator is 'torch.ops.of_command_line.leak.default'" in capsys.readouterr().err
    assert inspected(capsys, "net.pt2", "--rules", "torch_rules") == (4, [])


def test_rules_of_an_installed_package_need_not_be_named(folder, capsys, monkeypatch):
    (folder / "onnx_rules.py").write_text(ONNX_RULES)
    installed = folder / "leaky-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{GROUP}]\nleaky = onnx_rules\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(TABLE, "_group", GROUP)
    assert main(["inspect", "net.onnx", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["groups"] == 4
    assert "operator rules of leaky (onnx_rules)" in told.err


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [("nowhere.to_be_found", 1, "error: --rules: there is no module nowhere.to_be_found"), ("a-b", 2, "is no module")],
)
def test_a_module_that_is_not_there_is_one_line(folder, capsys, name, code, text):
    assert main(["inspect", "net.onnx", "--rules", name]) == code
    told = capsys.readouterr().err
    assert text in told
    assert told.count("\n") == 1

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch

from graphprune.passes.channels.rules import RULES, TABLE

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "compress_from_python.py": "the file to ship",
    "custom_operator.py": "still made of Conv, com.example.Slope, Conv",
    "inspect_groups.py": "As a networkx graph",
    "one_shot.py": "the ONNX file, cut by the same plan",
    "train_with_accelerate.py": "the slim model is right on",
    "train_with_labels.py": "the slim model is right on",
}

#: What they show, other tests do.
TRAINS_LONGER = {"compress_from_python.py", "train_with_accelerate.py"}


@pytest.fixture
def _own_table():
    """What an example registers is not left behind."""
    yield
    for rule, _ in [*TABLE.aten.values(), *TABLE.onnx.values()]:
        if rule not in RULES:
            TABLE.remove(rule)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in TRAINS_LONGER)) for name in sorted(SAYS)]
)
@pytest.mark.usefixtures("_own_table")
def test_the_example_runs(name, tmp_path, capsys, monkeypatch):
    if "accelerate" in name:
        pytest.importorskip("accelerate")
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out


def test_every_example_of_the_interface_is_tested():
    for path in EXAMPLES.glob("*.py"):
        document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert document, path
        assert path.name in SAYS or "Run it:" not in document

import ast
import logging
import re
from pathlib import Path

import click
import pytest

from graphprune.cli.options import RunState, take_down_log
from graphprune.cli.spelling import as_options

OPTIONS = [
    click.Option(["--trust-pickle"], is_flag=True),
    click.Option(["--arch"]),
    click.Option(["-o", "--output"]),
    click.Option(["--students", "n_students"]),
    click.Option(["--shrink/--no-shrink"]),
    click.Option(["--image-size"]),
    click.Argument(["model"]),
]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("pass `trust_pickle=True` if you trust it", "pass --trust-pickle if you trust it"),
        ('give `arch="package.module:f"`, or not', "give --arch package.module:f, or not"),
        ("leave `arch='m:f(width=0.5)'` out", "leave --arch 'm:f(width=0.5)' out"),
        ("set `image_size` or `crop`", "set --image-size or `crop`"),
        ("`output=here`", "--output here"),
        ("with `n_students=3`.", "with --students 3."),
        ("`shrink=False` keeps them, `shrink=True` does not", "--no-shrink keeps them, --shrink does not"),
        ("`model=3`, `width=4`, `a b`, arch=5", "`model=3`, `width=4`, `a b`, arch=5"),
        ("nothing of that kind", "nothing of that kind"),
    ],
)
def test_settings_are_spelled_as_options_of_the_command(text, spelled):
    assert as_options(text, OPTIONS) == spelled


def test_without_a_command_they_stay_as_they_are():
    assert as_options("pass `trust_pickle=True`", []) == "pass `trust_pickle=True`"


ROOT = Path(__file__).parents[2]
#: Its lines are a command to copy.
COMMANDS_TO_COPY = "graphprune/demo.py"


def texts(path):
    """All text in a module but its docstrings."""
    tree = ast.parse(path.read_text())
    own = (ast.Module, ast.ClassDef, ast.FunctionDef)
    said = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, own) and ast.get_docstring(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value, node.lineno


def test_the_library_names_no_options_of_the_command_line():
    """Who calls it from Python has none."""
    files = [path for folder in ("graphprune", "passes") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in files
        if path != ROOT / COMMANDS_TO_COPY
        for text, line in texts(path)
        if re.search(r"(?<![\w-])--([a-z]|$)", text)
    ]
    assert found == []


@pytest.fixture
def log():
    yield logging.getLogger("graphprune")
    take_down_log()


def test_the_log_spells_them_so_too(log, capsys):
    RunState(options=OPTIONS).set_up_log()
    log.warning('took the first: `arch="%s"` takes another', "a:b")
    log.info("`trust_pickle=True`")
    assert capsys.readouterr().err == "warning: took the first: --arch a:b takes another\n--trust-pickle\n"


def test_every_line_comes_once_whatever_a_library_does_to_the_root_logger(log, capsys):
    RunState().set_up_log()
    logging.warning("a library that talks through the root logger")
    logging.basicConfig(level=logging.INFO)
    log.info("ours")
    logging.getLogger("onnx_ir").warning("theirs")
    assert capsys.readouterr().err == "ours\n"


def test_afterwards_logging_is_as_it_was(log):
    before = [*logging.getLogger().handlers]
    RunState().set_up_log()
    take_down_log()
    assert logging.getLogger().handlers == before
    assert log.propagate
    assert log.handlers == []

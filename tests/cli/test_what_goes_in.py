"""Every cell of the page that says what each command takes, run on a small file."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
from what_goes_in import COMMANDS, KINDS, SIDE, TAKEN, markdown, pictures

from graphprune.cli import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "what_goes_in.md"
FAST = ("inspect", "slim", "quantize", "verify")
#: Options that say of a torch model what its file does not.
OF_THE_MODEL = {"inspect": ("--image-size", f"{SIDE}"), "verify": ("--shape", f"2x3x{SIDE}x{SIDE}")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "images.npy", (pictures().transpose(0, 2, 3, 1) * 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def words(folder):
    """The words of a kind for the command line; its file is made once."""
    made = {}

    def of(kind):
        if kind.name not in made:
            logging.disable(logging.WARNING)  # onnxruntime's quantizer advises
            made[kind.name] = kind.make(folder / kind.file)
            logging.disable(logging.NOTSET)
        return made[kind.name]

    return of


def arguments(command, kind, words, folder, out):
    """What somebody types to try a command with a file."""
    file, *options = words
    if not file.endswith((".onnx", ".pt2")):
        options += OF_THE_MODEL.get(command, ())
    if command in ("slim", "quantize", "benchmark"):
        options = []  # none of these takes a torch model, and so none of its options
    return {
        "inspect": [file, *options],
        "slim": [file, out / "out.onnx", "--ratio", "0.5"],
        "compress": [
            *(file, *options, "--data", folder / "images.npy", "--image-size", SIDE, "--macs", "0.6", "--epochs", "0"),
            *("--threads", "1", "--benchmark-seconds", "0", "-o", out / "run"),
        ],
        "quantize": [
            *(file, out / "out.onnx", "--data", folder / "images.npy", "--min-agreement", "0"),
            *("--calibration-images", "8", "--search-images", "8", "--benchmark-seconds", "0"),
        ],
        "verify": [file, file, *options],
        "benchmark": [file, "--min-seconds", "0.01", "--no-pin"],
    }[command]


def run(command, *given):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([command, *(str(item) for item in given)])
    return code, out.getvalue(), err.getvalue()


def is_done(command, out, folder):
    """Did a command do what it is there for?"""
    if command in ("inspect", "benchmark", "verify"):
        return {"inspect": "first", "benchmark": "ms", "verify": "equal"}[command] in out
    file = folder / ("run/slim.onnx" if command == "compress" else "out.onnx")
    model = onnx.load(file)
    if command == "quantize":
        return any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    kernels = [tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 4]
    return len(kernels) == 2 and sum(kernels) < 16


def check(command, kind, words, folder, out):
    code, said, errors = run(command, *arguments(command, kind, words(kind), folder, out))
    refusal = kind.cells[COMMANDS.index(command)]
    if refusal is None:
        assert (code, errors.count("error:")) == (0, 0), errors
        assert is_done(command, said, out)
        return
    last = errors.strip().splitlines()[-1]
    assert code == refusal.code, errors
    assert last.startswith("error:")
    assert refusal.said in last
    assert "unexpected" not in errors
    assert not [*out.glob("out.onnx*")]


def cells(is_fast):
    """Cells as parameters: those that take no seconds, or the others, what is taken and compressed or timed."""
    for kind in KINDS:
        for command, cell in zip(COMMANDS, kind.cells, strict=True):
            if (command in FAST or cell is not None) == is_fast:
                yield pytest.param(command, kind, id=f"{command}-{kind.file}")


@pytest.mark.parametrize(("command", "kind"), cells(True))
def test_a_cell(command, kind, words, folder, tmp_path):
    check(command, kind, words, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), cells(False))
def test_a_cell_that_takes_seconds(command, kind, words, folder, tmp_path):
    check(command, kind, words, folder, tmp_path)


def test_the_page_is_the_table():
    assert DOCUMENT.read_text() == markdown()
    assert len(TAKEN) == len(COMMANDS)
    assert all(len(kind.cells) == len(COMMANDS) for kind in KINDS)

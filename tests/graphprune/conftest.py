"""Makes the builder of ONNX models importable, and a small file of it."""

import sys
from pathlib import Path

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "passes" / "onnx"))

from builder import network


@pytest.fixture
def source(tmp_path):
    """A file of three convolutions; two channels of the first are dead."""
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path

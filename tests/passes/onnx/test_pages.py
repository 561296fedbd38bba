"""Weights that have been read need not stay in memory, and are read again where somebody looks."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from builder import Builder

from graphprune.passes.channels.operators import Op
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.analyze import trace_onnx
from graphprune.passes.onnx.model import load_model
from graphprune.passes.onnx.pages import Forget, let_go, put_aside

MEGABYTES = 8


def mapped_mb() -> float:
    """What of mapped files is resident."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssFile"].split()[0]) / 1024


@pytest.fixture(params=["inside", "external"])
def path(request, tmp_path):
    b = Builder()
    b.output(b.call("MatMul", b.input(("n", 2048)), b.weight(2048, MEGABYTES << 7, name="w")))
    options = {"save_as_external_data": True, "location": "m.data"} if request.param == "external" else {}
    onnx.save(b.model(), tmp_path / "m.onnx", **options)
    return tmp_path / "m.onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_memory_is_given_back_and_the_numbers_stay(path):
    weight = load_model(path).graph.initializers["w"].const_value.numpy()
    before = mapped_mb()
    total = weight.sum()
    assert mapped_mb() - before > MEGABYTES * 0.9
    put_aside(weight)
    assert mapped_mb() - before < MEGABYTES * 0.2
    assert weight.sum() == total


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_looking_for_dead_channels_keeps_no_weights(path):
    model = load_model(path)
    before = mapped_mb()
    graph = trace_onnx(model, dead=True)
    assert mapped_mb() - before < MEGABYTES * 0.5
    assert all(known.data is None for known in graph.front_end.env.values() if known.parameter == "w")


def test_a_part_of_an_array_and_one_that_is_not_mapped_stay_what_they_are(path):
    weight = load_model(path).graph.initializers["w"].const_value.numpy()
    copy = weight.copy()
    put_aside(weight[100:900])
    put_aside(copy)
    assert np.array_equal(weight, copy)


def test_a_model_that_is_let_go_holds_nothing(path):
    model = load_model(path)
    let_go(model)
    assert model.graph.initializers["w"].const_value is None


def test_what_is_forgotten_is_the_same_for_the_same():
    large, small = Value((1 << 17,), data=np.ones(1 << 17)), Value((2,), data=np.ones(2))
    op = Op("Concat", "c", "c", {"input": [large, small, None], "axis": 1}, {}, ())
    forget = Forget()
    found = forget.numbers_of(op)
    assert found.inputs["input"][0] is forget.numbers(large)
    assert found.inputs["input"][0].data is None
    assert found.inputs["input"][1:] == [small, None]
    assert op.inputs["input"][0].data is not None

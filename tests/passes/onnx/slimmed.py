"""Graphs with dead channels, slimmed and checked."""

import numpy as np
import onnx
import onnx_ir as ir
from builder import Builder, difference, image, run, shapes, zero

from graphprune.passes.onnx.slim import slim_model

X = {"x": image(2, 3, 8, 8)}
ONE = np.ones(1, np.float32)


def slimmed(model: onnx.ModelProto) -> ir.Model:
    result = ir.from_proto(model)
    slim_model(result)
    return result


def two_layers(b: Builder, shape=("n", 3, 8, 8), between=None) -> onnx.ModelProto:
    x = b.conv(b.input(shape), 3, 8, name="first")
    x = b.call("Relu", x)
    x = between(x) if between else x
    b.output(b.conv(x, 8, 4, name="second"), ("n", 4, "h", "w"))
    return b.model()


def kill(model: onnx.ModelProto, name: str, index) -> None:
    zero(model, f"{name}.weight", index)
    zero(model, f"{name}.bias", index)


def check(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]], feeds=None) -> ir.Model:
    """Slim; the sizes must be these, and the outputs as before."""
    feeds = feeds or X
    before = model.SerializeToString()
    result = slimmed(model)
    assert model.SerializeToString() == before
    found = shapes(result)
    assert {name: found.get(name) for name in sizes} == sizes
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for optimize in (False, True):
        assert difference(run(model, feeds, optimize), run(result, feeds, optimize)) < 1e-5
    return result

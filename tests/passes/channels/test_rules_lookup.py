"""Tensors made from nothing: what in them depends on the input."""

import numpy as np
import pytest

from graphprune.passes.channels.value import Value


def number(value: int | None) -> Value:
    return Value((), constant=value is not None, data=None if value is None else np.array(value))


@pytest.mark.parametrize(("limit", "constant"), [(4, True), (None, False)])
def test_a_range_is_as_constant_as_its_limits(sketch, limit, constant):
    values = [number(0), number(limit), number(1)]
    assert sketch.onnx("Range", (4,), input=values).constant == constant


@pytest.mark.parametrize("kind", ["Shape", "Size"])
def test_sizes_of_an_input_are_constant(sketch, kind):
    assert sketch.onnx(kind, (4,), input=sketch.input(1, 3, 4, 4)).constant


def test_a_filling_takes_only_its_type_from_an_input(sketch):
    assert sketch.call("new_zeros", (2, 3), input=sketch.input(1, 3, 4, 4), shape=[2, 3]).constant


def test_random_numbers_are_not_constant(sketch):
    assert not sketch.onnx("RandomNormal", (1, 3, 4, 4)).constant

"""What an ONNX graph says of its outputs."""

import numpy as np
import pytest
from builder import Builder

from graphprune.passes.onnx.ends import output_ends


def ended(build, opset=17, shape=("n", 6, 4, 5)):
    g = Builder(opset)
    x = g.input(list(shape), "x")
    g.output(build(g, g.call("Relu", x)), None)
    (found,) = output_ends(g.model())
    return None if found is None else (found.kind, found.axis, found.source_axis)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda g, x: g.call("Softmax", x, axis=1), ("classes", 1, 1)),
        (lambda g, x: g.call("LogSoftmax", x, axis=-1), ("classes", 3, 3)),
        (lambda g, x: g.call("Identity", g.call("Softmax", x)), ("classes", 3, 3)),
        (lambda g, x: g.call("Transpose", g.call("Softmax", x, axis=1), perm=[0, 2, 3, 1]), ("classes", 3, 1)),
        (lambda g, x: g.call("ArgMax", x, axis=1, keepdims=0), ("labels", 1, 1)),
        (lambda g, x: g.call("Sigmoid", x), ("scores", 0, 0)),
        (lambda g, x: g.call("Mul", g.call("Softmax", x), x), None),
        (lambda g, x: x, None),
    ],
)
def test_the_last_operator_says_what_an_output_is(build, expected):
    assert ended(build) == expected


def test_what_is_flattened_by_an_old_softmax_is_one_class_axis_only_where_it_is_one_dimension():
    assert ended(lambda g, x: g.call("Softmax", x, axis=1), opset=11) is None
    assert ended(lambda g, x: g.call("Softmax", x, axis=3), opset=11) == ("classes", 3, 3)
    assert ended(lambda g, x: g.call("Softmax", x), opset=11, shape=("n", 6)) == ("classes", 1, 1)


def test_classes_are_found_behind_a_reshape_of_known_sizes():
    def reshaped(g, x):
        x = g.call("Softmax", g.call("GlobalAveragePool", x), axis=1)
        return g.call("Reshape", x, g.literal(np.int64([0, 6]), "rows"))

    assert ended(reshaped, shape=(1, 6, 4, 5)) == ("classes", 1, 1)

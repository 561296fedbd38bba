"""Of which parts an output is concatenated."""

import numpy as np
import pytest
from builder import Builder

from graphprune.passes.onnx.joined import joined_parts


def parts(make, rank_of_batch="n"):
    b = Builder(17)
    x = b.call("Relu", b.input((rank_of_batch, 3, 8, 8)))
    joined = b.call("Concat", b.conv(x, 3, 4, 1), b.call("Sigmoid", b.conv(x, 3, 5, 1)), axis=1)
    b.output(make(b, joined))
    model = b.model()
    return joined_parts(model, [model.graph.output[0].name])[model.graph.output[0].name]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda b, x: x, {1: (4, 5)}),
        (lambda b, x: b.call("Mul", x, b.vector(1)), {1: (4, 5)}),
        (lambda b, x: b.call("Transpose", x, perm=[0, 2, 3, 1]), {3: (4, 5)}),
        (lambda b, x: b.call("Reshape", x, b.literal(np.array([0, 9, -1]))), {1: (4, 5)}),
        (lambda b, x: b.call("Reshape", x, b.literal(np.array([0, -1]))), {1: (256, 320)}),
        (lambda b, x: b.call("Concat", x, x, axis=1), {1: (4, 5, 4, 5)}),
        (lambda b, x: b.call("Concat", x, x, axis=2), {1: (4, 5), 2: (8, 8)}),
        (lambda b, x: b.call("Slice", x, *(b.literal(np.array([i])) for i in (0, 4, 2))), {1: (4, 5)}),
        (lambda b, x: b.conv(x, 9, 9), {}),
        (lambda b, x: b.call("Reshape", x, b.literal(np.array([0, 3, 3, -1]))), {}),
        (lambda b, x: b.call("ReduceSum", x, b.literal(np.array([1]))), {}),
    ],
)
@pytest.mark.parametrize("batch", ["n", 1])
def test_parts_are_followed_to_the_output(make, expected, batch):
    assert parts(make, batch) == expected

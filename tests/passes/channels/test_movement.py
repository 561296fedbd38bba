"""A move of a compressed array must be what the data movement does to the full one."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.passes.channels import labels, movement


def test_examples_in_the_docstrings():
    for module in (movement, labels):
        result = doctest.testmod(module, extraglobs={"np": np})
        assert result.failed == 0
        assert result.attempted > 0


def compressed_arrays(shape):
    """An array for every choice of dimensions along which it differs, with its full form."""
    for bits in range(2 ** len(shape)):
        small = tuple(size if bits >> dim & 1 else 1 for dim, size in enumerate(shape))
        array = np.arange(np.prod(small, dtype=int)).reshape(small)
        yield array, np.ascontiguousarray(np.broadcast_to(array, shape))


MOVES = [
    ((2, 6, 4), (4, 2, 6), movement.permute((2, 0, 1)), lambda a: a.transpose(2, 0, 1)),
    ((2, 6, 4), (2, 4), movement.select(1, 3), lambda a: a[:, 3]),
    ((2, 6, 4), (2, 2, 4), movement.slices({1: (1, 5, 2)}), lambda a: a[:, 1:5:2]),
    ((2, 6, 4), (2, 6, 4), movement.slices({1: (5, -1, -1)}), lambda a: a[:, ::-1]),
    ((2, 6, 4), (1, 6, 2), movement.slices({0: (1, 2, 1), 2: (2, 4, 1)}), lambda a: a[1:, :, 2:]),
    ((2, 6, 4), (2, 3, 4), movement.take(1, np.array([5, 0, 5])), lambda a: a[:, [5, 0, 5]]),
    ((2, 6), (2, 2, 2), movement.take(1, np.array([[5, 0], [1, 2]])), lambda a: a[:, [[5, 0], [1, 2]]]),
    ((2, 6, 4), (2, 6, 4), movement.flip((1, 2)), lambda a: a[:, ::-1, ::-1]),
    ((2, 6, 4), (2, 6, 4), movement.roll((2, -1), (1, 2)), lambda a: np.roll(a, (2, -1), (1, 2))),
    ((2, 3), (4, 2, 9), movement.tile((2, 3), (4, 1, 3)), lambda a: np.tile(a, (4, 1, 3))),
    ((2, 6, 4), (2, 12, 4), movement.repeat_each(1, 2), lambda a: np.repeat(a, 2, 1)),
    ((6, 1), (2, 6, 5), movement.expand((6, 1), (2, 6, 5)), lambda a: np.broadcast_to(a, (2, 6, 5))),
]


@pytest.mark.parametrize(("before", "after", "move", "real"), MOVES)
def test_move_does_to_labels_what_the_operator_does_to_data(before, after, move, real):
    for small, full in compressed_arrays(before):
        moved = move(small)
        assert moved.ndim == len(after)
        assert all(size in (1, wanted) for size, wanted in zip(moved.shape, after, strict=True))
        expected = real(full)
        assert expected.shape == after
        assert np.array_equal(np.broadcast_to(moved, after), expected)


def test_the_comparison_can_fail():
    small, full = next(pair for pair in compressed_arrays((2, 6, 4)) if pair[0].shape == (1, 6, 1))
    shifted = movement.roll((1,), (1,))(small)
    assert not np.array_equal(np.broadcast_to(shifted, full.shape), full)


@st.composite
def reshapes(draw):
    """Two shapes with the same number of elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped():
        shape, at = [], 0
        while at < len(factors):
            step = draw(st.integers(1, len(factors) - at))
            shape.append(int(np.prod(factors[at : at + step])))
            at += step
        for _ in range(draw(st.integers(0, 2))):
            shape.insert(draw(st.integers(0, len(shape))), 1)
        return tuple(shape)

    return grouped(), grouped()


@settings(max_examples=150, deadline=None)
@given(reshapes())
def test_reshape_of_labels_is_reshape_of_data(shapes):
    before, after = shapes
    move = movement.reshape(before, after)
    for small, full in compressed_arrays(before):
        assert np.array_equal(np.broadcast_to(move(small), after), full.reshape(after))


def test_reshape_writes_out_only_the_blocks_that_differ():
    channel = np.arange(8).reshape(1, 8, 1, 1)
    assert movement.reshape((2, 8, 4, 4), (2, 2, 4, 16))(channel).shape == (1, 2, 4, 1)
    assert movement.reshape((2, 8, 4, 4), (2, 128))(channel).shape == (1, 128)
    assert movement.reshape((2, 8, 4, 4), (16, 4, 4))(channel).shape == (16, 1, 1)


def test_blocks_of_a_reshape():
    blocks = movement.reshape_blocks
    assert blocks((2, 12), (2, 3, 4)) == [(range(1), range(1)), (range(1, 2), range(1, 3))]
    assert blocks((2, 3, 4), (6, 4)) == [(range(2), range(1)), (range(2, 3), range(1, 2))]
    assert blocks((2, 1, 1), (2,)) == [(range(3), range(1))]
    assert blocks((), (1, 1)) == [(range(0), range(2))]


def test_reshape_to_another_number_of_elements_is_refused():
    with pytest.raises(ValueError, match="cannot reshape"):
        movement.reshape((2, 3), (2, 4))

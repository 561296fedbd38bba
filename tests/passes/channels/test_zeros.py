import ml_dtypes
import numpy as np
import pytest

from graphprune.passes.channels.zeros import nonzero_matrix, silent_rows, zero_slices

TYPES = ("f2", "f4", "f8", "i1", "u1", "i4", "u4", "i8", "?", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
SHAPES = ((6,), (6, 5), (6, 5, 3), (6, 5, 3, 3), (6, 5, 9, 9), (1, 1, 1))


def array(shape, kind, seed=0):
    """Some slices of every dimension are zero, and single numbers besides."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(1, 100, shape) * rng.choice([1, -1], shape) * (rng.random(shape) < 0.8)
    for dim, size in enumerate(shape):
        if size > 2:
            np.moveaxis(numbers, dim, 0)[rng.integers(0, size)] = 0
    return numbers.astype(kind)


def by_definition(data, dims):
    return ~(data != 0).any(axis=tuple(dim for dim in range(data.ndim) if dim not in dims))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_slices_are_those_of_which_all_is_zero(shape, kind):
    data = array(shape, kind)
    for dim, found in enumerate(zero_slices(data)):
        assert found.tolist() == by_definition(data, (dim,)).tolist()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_matrix_is_not_zero_where_something_behind_it_is_not(shape, kind):
    data = array(shape, kind)
    assert nonzero_matrix(data).tolist() == (~by_definition(data, (0, 1))).tolist()


def test_one_number_counts_and_the_sign_of_zero_does_not():
    data = np.full((4, 3, 2), -0.0, np.float32)
    data[1, 2, 0], data[3, 0, 1] = np.nan, 1e-45
    assert [found.tolist() for found in zero_slices(data)] == [
        [True, False, True, False],
        [False, True, False],
        [False, False],
    ]
    assert np.argwhere(nonzero_matrix(data)).tolist() == [[1, 2], [3, 0]]


def test_smallest_integers_are_not_zero():
    assert not zero_slices(np.array([-128, -1, 127], np.int8))[0].any()


def test_any_layout_of_the_numbers_does():
    data = array((6, 5, 3, 3), "f4").transpose(2, 0, 3, 1)[:, ::2]
    assert [found.tolist() for found in zero_slices(data)] == [by_definition(data, (dim,)).tolist() for dim in range(4)]
    shifted = np.frombuffer(b"\1" + np.float32([0, 2]).tobytes(), np.float32, offset=1)  # as in a protobuf message
    assert zero_slices(shifted)[0].tolist() == [True, False]


def test_without_elements_all_is_zero():
    assert [found.tolist() for found in zero_slices(np.zeros((0, 2), "f4"))] == [[], [True, True]]
    assert zero_slices(np.float32(3).reshape(())) == []
    assert nonzero_matrix(np.zeros((2, 1, 0), "f4")).tolist() == [[False], [False]]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_silent_where_all_that_is_heard_is_zero(shape, kind, seed):
    data = array(shape, kind, seed) * np.random.default_rng(seed).choice([0, 1], shape, p=[0.7, 0.3]).astype(kind)
    heard = np.random.default_rng(seed).random(shape[1]) < 0.6
    expected = by_definition(data[:, heard], (0,)) if heard.any() else np.ones(shape[0], dtype=np.bool_)
    for known in (zero_slices(data)[0], np.zeros(shape[0], dtype=np.bool_)):
        assert silent_rows(data, heard, known).tolist() == expected.tolist()


def test_where_nothing_is_heard_all_rows_are_silent():
    assert silent_rows(np.ones((3, 2), "f4"), np.zeros(2, "?"), np.zeros(3, "?")).all()

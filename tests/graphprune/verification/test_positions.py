import numpy as np
import pytest

from graphprune.verification.positions import Fold, binding_dimension, local_scale, rows_at_a_time


def test_a_scale_is_that_of_the_smallest_slice():
    # three channels of four positions; the last two positions are those of a coarser grid
    largest = np.array([[10.0, 20, 300, 400], [8, 30, 200, 500], [0.5, 0.9, 0.2, 0.7]])
    found = local_scale(largest)
    # a fine position is held to the largest of its column, a coarse one to that of its row
    np.testing.assert_array_equal(found, [[10, 30, 300, 400], [10, 30, 300, 500], [0.9] * 4])
    assert binding_dimension(largest, (2, 3)) == 0
    assert binding_dimension(largest, (0, 1)) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_small_slice_is_found_along_any_dimension(axis):
    largest = np.full((3, 4, 5), 640.0)
    index = [slice(None)] * 3
    index[axis] = 1
    largest[tuple(index)] = 1.0
    found = local_scale(largest)
    assert (found[tuple(index)] == 1).all()
    assert (found == 640).sum() == largest.size - found[tuple(index)].size


def test_a_vector_has_its_own_scale_at_every_index_and_a_number_its_own():
    np.testing.assert_array_equal(local_scale(np.array([640.0, 1.0])), [640, 1])
    assert local_scale(np.array(3.0)) == 3


def test_sizes_that_differ_between_batches_are_not_told_apart_any_more():
    fold = Fold()
    assert fold.common((5, 4)) == (5, 4)
    assert fold.common((7, 4)) == (1, 4)
    assert fold.common((5, 4)) == (1, 4)
    assert fold.common((5,)) == ()
    found = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(Fold.to(found, (1, 4), np.max), [[4, 5, 6, 7]])
    assert Fold.to(found, (), np.sum) == 28


def test_what_stands_beside_the_largest_comes_with_it():
    gaps, samples = np.array([[1.0, 9, 2], [3, 4, 5]]), np.array([[10, 11, 12], [13, 14, 15]])
    largest, beside = Fold.to_largest(gaps, samples, (1, 3))
    np.testing.assert_array_equal(largest, [[3, 9, 5]])
    np.testing.assert_array_equal(beside, [[13, 11, 15]])
    assert [float(v) for v in Fold.to_largest(gaps, samples, ())] == [9, 11]
    assert Fold.to_largest(gaps, samples, (2, 3))[1] is samples


def test_large_outputs_are_worked_on_by_a_few_samples():
    assert rows_at_a_time(np.zeros((8, 10))) >= 8
    assert rows_at_a_time(np.broadcast_to(np.float32(0), (8, 1 << 21))) == 2
    assert rows_at_a_time(np.broadcast_to(np.float32(0), (8, 1 << 24))) == 1

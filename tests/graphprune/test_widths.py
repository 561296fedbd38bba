import numpy as np
import pytest

from graphprune.widths import axis_of

SET_OF = np.array([0, 0, 0, 0, 1, 1])
SIZES = np.array([4, 2])


def test_an_axis_is_as_long_as_the_sets_are_wide():
    axis = axis_of(np.array([0, 1, 2, 3, 4, 4, 5, 5, -1]), SET_OF, SIZES)
    assert (axis.fixed, axis.terms) == (1.0, ((0, 1.0), (1, 2.0)))
    assert axis.length([3, 1]) == 6
    assert axis_of(np.array([-1, -1]), SET_OF, SIZES).terms == ()


def test_unequal_counts_are_those_of_a_mean_group():
    axis = axis_of(np.array([0, 1, 2, 3, -1]), SET_OF, SIZES, np.array([1.0, 0.0, 5.0, 2.0, 3.0]))
    assert (axis.fixed, axis.terms) == (3.0, ((0, 2.0),))
    assert axis.length([4, 2]) == pytest.approx(11.0)

import numpy as np

from graphprune.passes.channels.segments import Segments


def test_each_array_is_answered_for_by_itself():
    arrays = [np.array([[3, 1], [2, 1]]), np.array([5]), np.array([0, 4, 0])]
    every = Segments(arrays)
    assert every.least(every.values).tolist() == [1, 5, 0]
    assert every.most(every.values).tolist() == [3, 5, 4]
    assert [part.tolist() for part in every.apart(every.values * 2)] == [[6, 2, 4, 2], [10], [0, 8, 0]]


def test_counts_leave_out_what_is_negative():
    every = Segments([np.array([2, -1, 2]), np.array([-1]), np.array([0, 1])])
    assert every.counts(every.values, 4).toarray().tolist() == [[0, 0, 2, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_nothing_at_all():
    every = Segments([])
    assert len(every) == 0
    assert every.least(every.values).tolist() == every.most(every.values).tolist() == every.apart(every.values) == []
    assert every.counts(every.values, 3).shape == (0, 3)

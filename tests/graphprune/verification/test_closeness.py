import numpy as np
import pytest

from graphprune.verification.closeness import Judge


def judged(*pairs, rtol=1e-4, atol=0.0, **options):
    judge = Judge("out", rtol, atol)
    at = 0
    for a, b in pairs:
        judge.see(np.asarray(a), np.asarray(b), at, **options)
        at += len(a)
    return judge.result()


def test_every_channel_is_judged_in_its_own_scale():
    result = judged(([[1.0, -200.0]], [[1.01, -200.0]]), ([[0.0, 5.0]], [[0.0, 5.0]]))
    assert not result.equal
    assert (result.scale, result.max_difference) == (1.0, pytest.approx(0.01))
    assert result.error == pytest.approx(0.01)
    assert result.said(1e-4) == "differs by 0.01 of its scale at index 0 of dimension 1, 0.0001 is tolerated"


def boxes_and_scores(axis):
    """Eight samples of 4 coordinates up to 640 and 3 scores up to 1, at 20 positions."""
    rng = np.random.default_rng(0)
    scale = np.array([640.0] * 4 + [1.0] * 3)[:, None]
    return np.moveaxis(rng.random((8, 7, 20)) * scale, 1, axis).astype(np.float32)


@pytest.mark.parametrize("axis", [1, 2])
def test_scores_beside_coordinates_are_not_held_to_these(axis):
    ours = boxes_and_scores(axis)
    theirs = ours.copy()
    np.moveaxis(theirs, axis, 1)[5, 4:] *= 0.99  # at most 0.01, of 640
    assert judged((ours, ours)).equal
    result = judged((ours, theirs))
    assert not result.equal
    assert result.worst_sample == 5
    assert result.place.endswith(f"of dimension {axis}")
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


def test_one_position_of_a_finer_grid_is_seen():
    ours = np.random.default_rng(0).random((4, 2, 10)) * np.array([5.0] * 6 + [600.0] * 4)
    theirs = ours.copy()
    theirs[2, 1, 3] += 0.02  # 0.4 % of the small boxes, 3e-5 of the large ones
    assert judged((ours, theirs)).place == "index 3 of dimension 2"


@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_no_batch_has_positions_along_its_first_dimension_too(rows):
    ours = np.random.default_rng(0).random((7, 20)) * np.array([640.0] * 4 + [1.0] * 3)[:, None]
    theirs = ours.copy()
    theirs[5] *= 1.01
    result = judged((ours, theirs), rows=rows)
    assert not result.equal
    assert result.place == "index 5 of dimension 0"


def test_a_list_of_another_length_in_each_batch_is_judged_by_column():
    rng = np.random.default_rng(0)
    ours = [rng.random((count, 5)) * [640, 640, 640, 640, 1] for count in (7, 3, 5)]
    theirs = [a.copy() for a in ours]
    theirs[1][2, 4] += 0.01
    assert judged(*zip(ours, ours, strict=True), rows=4).equal
    result = judged(*zip(ours, theirs, strict=True), rows=4)
    assert result.place == "index 4 of dimension 1"
    assert result.worst_sample == 7  # the first one of its batch


@pytest.mark.parametrize(("factor", "equal"), [(1 + 0.9e-4, True), (1 + 1.1e-4, False), (2.0, False), (-1.0, False)])
def test_the_tolerance_is_sharp(factor, equal):
    values = np.array([[0.5, -3.0, 1.0]])
    assert judged((values, values * factor)).equal is equal


def test_what_rounding_moves_is_allowed_where_it_moves_and_no_more_than_the_scale_of_the_output():
    ours = np.array([[100.0, 1e-3, 1e-3, 1e-3]])
    off = ours + np.array([[0, 5e-6, 0, 0]])
    judge = Judge("out", 1e-4, 0.0)
    judge.see(ours, off, 7)
    assert not judge.result().equal
    assert judge.suspects() == [7]
    judge.allow(np.array([[0, 0, 6e-6, 6e-6]]))
    assert not judge.result().equal
    judge.allow(np.array([[0, 6e-6, 0, 0]]))
    assert judge.result().equal
    beyond = Judge("out", 1e-4, 0.0)
    beyond.see(ours, ours + np.array([[0, 0.1, 0, 0]]), 0)
    assert beyond.suspects() == []  # more than the whole output tolerates: nothing to look into
    beyond.allow(np.full((1, 4), np.nan))
    assert not beyond.result().equal


def test_an_allowance_of_another_shape_counts_by_its_largest():
    judge = Judge("out", 1e-4, 0.0)
    for count in (3, 2):
        judge.see(np.ones((count, 2)) * [100, 1e-3], np.ones((count, 2)) * [100, 1.004e-3], 0, rows=1)
    assert not judge.result().equal
    judge.allow(np.full((4, 2), 1e-5), rows=1)
    assert judge.result().equal


def test_the_sample_with_the_largest_difference_is_known_over_batches():
    zeros, off = np.zeros((4, 3)), np.zeros((4, 3))
    off[2, 1] = 1.0
    result = judged((zeros + 1, zeros + 1), (zeros + 1, off + 1))
    assert not result.equal
    assert result.worst_sample == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_equals_what_is_not_finite_not_even_itself(value):
    broken = np.array([[1.0], [value]])
    both = judged((broken, broken))
    assert not both.equal
    assert both.error == np.inf
    assert both.worst_sample == 1
    assert "NaN or infinity in the reference" in both.problem
    assert "in the candidate" in judged((np.ones((2, 1)), broken)).problem


def test_common_faults_are_left_out_and_counted_and_nothing_else_is_nothing():
    broken = np.array([[1.0, np.nan], [2.0, np.inf]])
    judge = Judge("out", 1e-4)
    judge.see(broken, broken, 0, same_faults=True)
    assert judge.result().equal
    assert judge.faults == 2
    only = judged((broken[:, 1:], broken[:, 1:]), same_faults=True)
    assert not only.equal
    assert not only.compared
    assert only.problem == "is NaN or infinite throughout on the 2 samples, so nothing was compared"


def test_numbers_that_overflow_in_their_difference_are_numbers():
    large = np.full((1, 2), 3e38, np.float32)
    assert judged((large, large)).equal
    assert judged((large, -large)).error == pytest.approx(2.0)


def test_a_later_good_batch_does_not_heal():
    good = np.ones((1, 2))
    assert not judged((good, good * np.nan), (good, good)).equal


def test_other_shapes_are_different_even_where_they_broadcast():
    result = judged((np.ones((2, 3)), np.ones((2, 1))))
    assert not result.equal
    assert result.problem == "has shape 2x1 where 2x3 is expected"
    assert not judged((np.ones((0, 4)), np.ones((3, 4)))).equal


def test_integers_are_compared_exactly():
    classes = np.array([1, 2, 3, 4])
    assert judged((classes, classes)).equal
    result = judged((classes, np.array([1, 2, 3, 5])))
    assert not result.equal
    assert result.error == 0.25
    assert result.worst_sample == 3
    assert "25.00%" in result.problem


@pytest.mark.parametrize(("exact", "equal"), [(False, True), (True, False)])
def test_one_index_of_many_may_be_rounding_unless_what_it_comes_from_is_known(exact, equal):
    ours = np.zeros((1, 20_000), np.int64)
    theirs = ours.copy()
    theirs[0, 7] = 1
    judge = Judge("out", 1e-4, exact=exact)
    judge.see(ours, theirs, 0)
    assert judge.result().equal is equal


def test_zero_throughout_needs_the_absolute_tolerance():
    zeros = np.zeros((2, 2))
    assert judged((zeros, zeros)).equal
    assert not judged((zeros, zeros + 1e-7)).equal
    assert judged((zeros, zeros + 1e-7), atol=1e-6).equal


@pytest.mark.parametrize(("rtol", "atol"), [(1e-4, 5e-7), (1e-2, 5e-5)])
def test_the_absolute_tolerance_goes_with_the_relative_one(rtol, atol):
    small, one = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert judged((small, small + 0.9 * atol * one), rtol=rtol, atol=None).equal
    assert not judged((small, small + 1.1 * atol * one), rtol=rtol, atol=None).equal


def test_what_holds_nothing_equals_nothing():
    judge = Judge("out", 1e-4, 0.0)
    judge.see(np.ones((0, 3)), np.ones((0, 3)), 0, rows=4)
    result = judge.result()
    assert (result.equal, result.compared, result.passes) == (False, False, False)
    assert result.problem == "holds nothing on the 4 samples, so nothing was compared"
    judge.see(np.ones((2, 3)), np.ones((2, 3)), 4, rows=4)
    assert judge.result().equal


def test_scalars_can_be_judged():
    judge = Judge("out", 1e-4, 0.0)
    judge.see(np.float32(2.0), np.float32(2.0), 0)
    assert judge.result().equal
    judge.see(np.float32(2.0), np.float32(2.1), 0)
    assert judge.result().error == pytest.approx(0.05)


def test_large_outputs_are_judged_as_small_ones(monkeypatch):
    ours, theirs = boxes_and_scores(1), boxes_and_scores(1)
    theirs[6, 4, 3] += 0.5
    whole = judged((ours, theirs))
    monkeypatch.setattr("graphprune.verification.closeness.rows_at_a_time", lambda array: 3)
    assert judged((ours, theirs)) == whole

import numpy as np
import pytest

from graphprune.verification.closeness import Agreement, Judge, are_classes


def judged(*pairs, rtol=1e-4, atol=0.0):
    judge = Judge("out", rtol, atol)
    at = 0
    for a, b in pairs:
        judge.see(np.asarray(a), np.asarray(b), at)
        at += len(a)
    return judge.result()


def test_the_error_is_relative_to_the_scale_of_its_own_place():
    result = judged(([[1.0, -200.0]], [[1.01, -200.0]]), ([[0.0, 5.0]], [[0.0, 5.0]]))
    assert result.scale == 1
    assert result.error == pytest.approx(0.01)
    assert not result.equal
    assert result.place == "index 0 of dimension 1"
    beside = judged(([[1.0, -200.0]], [[1.0, -200.01]]), ([[0.0, 5.0]], [[0.0, 5.0]]))
    assert beside.error == pytest.approx(0.01 / 200)
    assert beside.equal


@pytest.mark.parametrize(("factor", "equal"), [(1 + 0.9e-4, True), (1 + 1.1e-4, False), (2.0, False), (-1.0, False)])
def test_the_tolerance_is_sharp(factor, equal):
    values = np.array([[0.5, -3.0, 1.0]])
    assert judged((values, values * factor)).equal is equal


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


def test_a_later_good_batch_does_not_heal():
    good = np.ones((1, 2))
    assert not judged((good, good * np.nan), (good, good)).equal


def test_other_shapes_are_different_even_where_they_broadcast():
    result = judged((np.ones((2, 3)), np.ones((2, 1))))
    assert not result.equal
    assert result.problem == "has shape 2x1 where 2x3 is expected"


def test_integers_are_compared_exactly():
    classes = np.array([1, 2, 3, 4])
    assert judged((classes, classes)).equal
    result = judged((classes, np.array([1, 2, 3, 5])))
    assert not result.equal
    assert result.error == 0.25
    assert result.worst_sample == 3
    assert "25.00%" in result.problem


def test_zero_throughout_needs_the_absolute_tolerance():
    zeros = np.zeros((2, 2))
    assert judged((zeros, zeros)).equal
    assert not judged((zeros, zeros + 1e-7)).equal
    assert judged((zeros, zeros + 1e-7), atol=1e-6).equal


def test_scalars_and_empty_outputs_can_be_judged():
    judge = Judge("out", 1e-4, 0.0)
    judge.see(np.float32(2.0), np.float32(2.0), 0)
    judge.see(np.ones((0, 3)), np.ones((0, 3)), 0)
    assert judge.result().equal


def test_agreement_counts_rows_and_leaves_padding_out():
    ours = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    theirs = np.array([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    agreement = Agreement()
    agreement.see([ours], [theirs], rows=3)
    assert agreement.share == pytest.approx(2 / 3)


def test_agreement_is_of_the_worst_output_with_scores_and_per_pixel():
    labels, scores = np.array([1, 2]), np.zeros((2, 2, 2, 2))
    scores[:, 1, 0, 0] = 1.0
    agreement = Agreement()
    agreement.see([labels, scores, scores], [labels, scores, np.zeros_like(scores)], rows=2)
    assert agreement.share == 0.75


def test_the_unit_of_an_agreement():
    for scores, unit in ((np.ones((3, 5)), "images"), (np.ones((3, 5, 2, 2)), "pixels")):
        agreement = Agreement()
        agreement.see([scores], [scores], rows=2)
        assert agreement.unit == unit


@pytest.mark.parametrize(
    ("shapes", "found"),
    [([(2, 5)], True), ([(2, 1)], False), ([(2, 3, 8, 8)], False), ([(2, 5), (2, 4)], False), ([], False)],
)
def test_what_is_taken_for_classes(shapes, found):
    assert are_classes(shapes, "auto") == found
    assert are_classes(shapes, "kl")
    assert not are_classes(shapes, "mse")


def test_no_scores_no_agreement():
    agreement = Agreement()
    agreement.see([np.ones((4, 1)), np.ones(4)], [np.ones((4, 1)), np.ones(4)], rows=4)
    assert agreement.share is None


def test_nan_agrees_with_nothing():
    scores = np.array([[np.nan, 1.0], [0.0, 1.0]])
    agreement = Agreement()
    agreement.see([scores], [scores], rows=2)
    assert agreement.share == 0.5

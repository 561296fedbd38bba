"""How often two models give the same answer, at outputs that give one."""

import numpy as np
import pytest

from graphprune.passes.channels.ends import End
from graphprune.verification.agreement import Agreement
from graphprune.verification.output_kinds import NUMBERS, OutputKind, kinds_of

CLASSES = OutputKind("classes")


def agreed(ours, theirs, *kinds, rows=None):
    agreement = Agreement()
    agreement.see(ours, theirs, kinds, rows or len(ours[0]))
    return agreement


def test_rows_count_and_padding_is_left_out():
    ours = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    theirs = np.array([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    assert agreed([ours], [theirs], CLASSES, rows=3).share == pytest.approx(2 / 3)


def test_it_is_of_the_worst_output_and_per_pixel():
    scores = np.zeros((2, 2, 2, 2))
    scores[:, 1, 0, 0] = 1.0
    found = agreed([scores, scores], [scores, np.zeros_like(scores)], CLASSES, CLASSES)
    assert found.share == 0.75
    assert found.unit == "pixels"


def test_classes_lie_where_the_end_says():
    ours = np.zeros((2, 3, 4))
    ours[:, :, 1] = 1
    theirs = ours.copy()
    theirs[0, 0] = [9, 0, 0, 0]
    found = agreed([ours], [theirs], OutputKind("classes", 2))
    assert found.share == pytest.approx(5 / 6)
    assert found.unit == "steps"
    assert agreed([ours], [theirs], OutputKind("classes", 1)).share == 7 / 8


def test_a_best_path_counts_runs_once():
    def path(*classes):
        return np.eye(5)[list(classes)]

    ours = np.stack([path(0, 1, 1, 2), path(0, 1, 2, 2)])
    theirs = np.stack([path(0, 0, 1, 2), path(0, 1, 3, 2)])
    (found,) = agreed([ours], [theirs], OutputKind("classes", 2)).outputs.values()
    assert found.same_path == 0.5
    assert found.share == pytest.approx(6 / 8)


def test_scores_are_told_apart_by_what_is_above_a_half_alone():
    ours, theirs = np.zeros((1, 1, 10, 10)), np.zeros((1, 1, 10, 10))
    ours[..., 0, :4], theirs[..., 0, 2:4] = 0.9, 0.6
    found = agreed([ours], [theirs], OutputKind("scores"))
    assert found.share == pytest.approx(2 * 2 / (4 + 2))
    assert found.unit == "pixels above one half"
    assert agreed([ours * 0], [theirs * 0], OutputKind("scores")).share is None


def test_indices_of_classes_are_compared_as_they_are():
    found = agreed([np.array([[1, 2], [3, 4]])], [np.array([[1, 2], [3, 5]])], OutputKind("labels"))
    assert found.share == 0.75


def test_where_an_output_is_numbers_no_share_speaks_for_all():
    scores, boxes = np.eye(3), np.ones((3, 4))
    found = agreed([scores, boxes], [scores, boxes + 9], CLASSES, NUMBERS)
    assert found.share is None
    assert found.outputs[0].share == 1.0
    assert agreed([scores, np.ones(3, int)], [scores, np.zeros(3, int)], CLASSES, NUMBERS).share == 1.0


def test_scores_of_another_number_agree_nowhere():
    agreement = Agreement()
    agreement.see([np.eye(3)], [np.eye(3)], [CLASSES], 3)
    agreement.see([np.eye(3)], [np.ones((3, 2))], [CLASSES], 3)
    assert agreement.share == 0.5


def test_nan_agrees_with_nothing():
    scores = np.array([[np.nan, 1.0], [0.0, 1.0]])
    assert agreed([scores], [scores], CLASSES).share == 0.5
    steps = np.stack([scores, np.eye(2)])
    assert agreed([steps], [steps], OutputKind("classes", 2)).outputs[0].same_path == 0.5


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ([(2, 5)], ["classes"]),
        ([(2, 1)], ["numbers"]),
        ([(2, 3, 8, 8)], ["numbers"]),
        ([(2, 5), (2, 4)], ["numbers"] * 2),
        ([], []),
    ],
)
def test_what_is_taken_for_classes_by_its_shape(shapes, found):
    assert [kind.name for kind in kinds_of(shapes, "auto")] == found
    assert [kind.name for kind in kinds_of(shapes, "kl")] == ["classes"] * len(shapes)
    assert [kind.name for kind in kinds_of(shapes, "mse")] == ["numbers"] * len(shapes)


def test_as_many_rows_as_objects_are_no_classes():
    assert kinds_of([(4, 6)], "auto", rows=4) == (CLASSES,)
    assert kinds_of([(330, 6)], "auto", rows=4) == (NUMBERS,)
    assert kinds_of([(330, 6)], "kl", rows=4) == (CLASSES,)


def test_the_end_goes_before_the_shape():
    ends = [End("classes", 2, "z", 1), End("scores", 0, "y", 0), End("labels", 1, "z", 1)]
    found = kinds_of([(2, 7, 5), (2, 3), (2, 7)], "auto", ends, floats=[True, True, False])
    assert found == (OutputKind("classes", 2), OutputKind("scores", 0), OutputKind("labels", 1))
    assert kinds_of([(2, 3)], "auto", [End("scores", 0, "y", 0)]) == (OutputKind("scores", 0),)

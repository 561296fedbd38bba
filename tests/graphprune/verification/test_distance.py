import numpy as np
import pytest

from graphprune.verification.distance import Distance, parts_of


def seen(*batches, rows=None, **options):
    distance = Distance(**options)
    for a, b in batches:
        distance.see([np.asarray(a)], [np.asarray(b)], rows or len(a))
    return distance


def boxes_and_scores(axis=1):
    rng = np.random.default_rng(0)
    scale = np.array([640.0] * 4 + [1.0] * 3)[:, None]
    return np.moveaxis(rng.random((16, 7, 20)) * scale, 1, axis)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("parts", [(), ({1: (4, 3)},)])
def test_a_part_that_is_lost_is_not_hidden_by_a_larger_one(axis, parts):
    ours = boxes_and_scores(axis)
    theirs = ours.copy()
    np.moveaxis(theirs, axis, 1)[:, 4:] = 0
    if axis == 2:
        parts = tuple({2: sizes[1]} for sizes in parts)
    found = seen((ours, theirs), parts=parts)
    assert found.worst >= 1
    worst = max(found.parts, key=lambda part: part.distance)
    assert worst.where == f"4 to 6 of dimension {axis}"
    assert worst.scale == pytest.approx(0.58, abs=0.03)
    assert min(part.distance for part in found.parts) == 0


def test_parts_that_the_file_states_are_kept_apart_even_where_they_are_alike():
    ours = np.random.default_rng(0).standard_normal((50, 4))
    theirs = ours * [1, 1, 1, 0]
    assert seen((ours, theirs)).worst == pytest.approx(0.25, abs=0.05)
    assert seen((ours, theirs), parts=({1: (3, 1)},)).worst == pytest.approx(1.0, abs=0.05)


def test_parts_by_scale_need_not_lie_beside_each_other():
    scales = np.array([600.0, 1.0, 500.0, 0.9, 0.4])
    assert [list(indices) for _, indices in parts_of(scales, {})] == [[1, 3, 4], [0, 2]]
    assert parts_of(np.array([1.0, 3.0, 9.0, 30.0]), {})[0][0] is None  # no jump
    assert len(parts_of(np.array([1.0, 0.0]), {})) == 2
    assert len(parts_of(np.zeros(3), {})) == 1
    assert len(parts_of(scales, {0: (2, 2)})) == 2  # sizes that do not fit are not those of this output


def test_each_channel_has_its_own_mean():
    ours = np.array([[4.0, 1.0], [5.0, 2.0], [6.0, 3.0]])
    assert seen((ours, ours + np.array([[1.0, 0], [0, 0], [0, 0]]))).worst == pytest.approx(1 / 4)


def test_a_distance_of_labels_is_the_share_that_differs():
    distance = Distance()
    numbers = np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32)
    distance.see([np.arange(4), numbers], [np.array([0, 1, 2, 9]), numbers], rows=4)
    assert distance.worst == 0.25
    assert distance.value == pytest.approx(0.125)


def test_faults_on_one_side_are_wholly_wrong_and_common_ones_are_counted():
    numbers, broken = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [np.inf]])
    assert 1 <= seen((numbers, broken)).worst < np.inf
    both = seen((broken, broken))
    assert (both.worst, both.faults) == (0.0, 1)


def test_a_number_that_never_varies_is_measured_by_its_size():
    assert seen((np.full((8, 1), 5.0), np.full((8, 1), 5.05))).value == pytest.approx(1e-4, rel=1e-3)


def test_another_shape_is_wholly_wrong():
    found = seen((np.ones((4, 3)), np.ones((4, 3))), (np.ones((4, 3)), np.ones((4, 2))))
    assert found.worst == 0.5
    assert seen((np.ones((4, 3)), np.ones((2, 3)))).worst == 1.0


def test_objects_that_are_missing_or_too_many_are_counted():
    lists = [(np.ones((6, 4)), np.ones((6, 4))), (np.ones((2, 4)), np.ones((0, 4))), (np.ones((1, 4)), np.ones((3, 4)))]
    found = seen(*lists, rows=8)
    assert found.worst == pytest.approx(16 / 36)
    assert next(part.where for part in found.parts if part.distance) == "36 elements instead of 36"
    assert seen((np.ones((36, 4)), np.ones((0, 4))), rows=8).worst == 1.0


def test_of_what_is_only_counted_numbers_do_not_count():
    ours, theirs = np.ones((6, 4)), np.full((6, 4), 9.0)
    assert seen((ours, theirs), rows=1, counted={0}).worst == 0
    assert seen((ours, theirs), rows=1).worst > 0
    assert seen((ours, theirs[:3]), rows=1, counted={0}).worst == 0.5


def test_what_holds_nothing_is_no_distance():
    distance = Distance()
    distance.see([np.ones((0, 4)), np.ones((2, 3))], [np.ones((0, 4)), np.ones((2, 3))], rows=2)
    assert distance.empty == [0]
    assert [part.output for part in distance.parts] == [1]
    assert seen((np.ones((0, 4)), np.ones((0, 4))), rows=2).parts == []


def test_images_that_fill_up_a_batch_do_not_count_and_a_first_dimension_that_is_no_batch_does():
    ours, theirs = np.ones((4, 2)), np.ones((4, 2))
    theirs[2:] = 5
    distance = Distance()
    distance.see([ours], [theirs], 2, batch=4)
    assert distance.worst == 0
    distance = Distance()
    distance.see([ours], [theirs], 1, batch=1)  # the four rows are those of one sample
    assert distance.worst > 0


def test_batches_of_any_size_make_one_distance():
    ours = boxes_and_scores()
    theirs = ours + np.random.default_rng(1).standard_normal(ours.shape) * 0.1
    whole, parts = seen((ours, theirs)), seen(*((ours[i : i + 5], theirs[i : i + 5]) for i in range(0, 16, 5)))
    assert [part.distance for part in parts.parts] == pytest.approx([part.distance for part in whole.parts])

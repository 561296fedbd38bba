import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.passes.channels.labels import PINNED, LabelSpace, keep_dims


def test_unite_broadcasts_and_is_transitive():
    space = LabelSpace()
    a, b, c = space.fresh(4), space.fresh(4), space.fresh(2)
    space.unite(a, b)
    assert np.array_equal(space.find(a), space.find(b))
    assert len(np.unique(space.find(a))) == 4
    space.unite(a.reshape(2, 2), c[:, None])  # rows (a0, a1) with c0 and (a2, a3) with c1
    roots = space.find(np.concatenate([a, b]))
    assert roots.tolist() == [0, 0, 2, 2, 0, 0, 2, 2]
    assert space.find(c).tolist() == [0, 2]


def test_the_root_of_a_class_is_its_smallest_label():
    space = LabelSpace()
    space.fresh(5)
    space.unite(np.array([4, 3]), np.array([2, 4]))
    assert space.find(np.arange(5)).tolist() == [0, 1, 2, 2, 2]


def test_the_same_pair_may_meet_any_number_of_times():
    """Duplicated edges are added up on the way to the components, and must not wrap around to none."""
    for count in (255, 256, 257, 512, 65536):
        space = LabelSpace()
        a, b = space.fresh(2)
        space.unite(np.full(count, a), np.full(count, b))
        assert space.find(np.array([b])) == a, count


def test_growth_keeps_what_was_united_and_frozen():
    space = LabelSpace()
    first = space.fresh(10)
    space.unite(first, first[:1])
    space.freeze(first[3:4], "because")
    later = space.fresh(5000)
    assert len(space) == 5010
    assert (space.find(first) == 0).all()
    assert (space.frozen(first) > PINNED).all()
    assert (space.frozen(later) == -1).all()
    assert np.array_equal(space.find(later), later)


@pytest.mark.parametrize("reported_first", [True, False])
def test_a_reported_reason_survives_a_silent_one(reported_first):
    space = LabelSpace()
    labels = space.fresh(2)
    for reason in ("is an output", None) if reported_first else (None, "is an output"):
        space.freeze(labels[:1], reason)
    assert space.reasons[space.frozen(labels)[0]] == "is an output"
    assert space.frozen(labels)[1] == -1
    pinned = space.fresh(1)
    space.freeze(pinned, None)
    assert space.frozen(pinned)[0] == PINNED
    space.unite(pinned, labels[:1])
    assert space.reasons[space.frozen(pinned)[0]] == "is an output"


def test_the_first_reason_stays_and_spreads_when_classes_meet():
    space = LabelSpace()
    a, b, c = (space.fresh(1) for _ in range(3))
    space.freeze(a, "first")
    space.freeze(a, "second")
    space.freeze(b, "third")
    space.unite(b, a)
    space.unite(c, b)
    assert space.reasons[space.frozen(c)[0]] == "first"


def test_freezing_nothing_is_allowed():
    space = LabelSpace()
    space.freeze(np.empty((0, 3), dtype=np.int64), "never")
    assert space.reasons == ["not a channel"]


def test_varies_looks_at_classes_not_at_labels():
    space = LabelSpace()
    labels = space.fresh(6).reshape(1, 2, 3, 1)
    assert space.varies(labels) == (1, 2)
    space.unite(labels, labels[:, :, :1])
    assert space.varies(labels) == (1,)
    space.compress()
    space.unite(labels, labels[:, :1])
    assert space.varies(labels) == ()
    assert space.varies(labels[:, :1, :1]) == ()


def test_keep_dims_takes_the_first_entry_elsewhere():
    array = np.arange(24).reshape(2, 3, 4)
    assert keep_dims(array, (1,)).tolist() == [[[0], [4], [8]]]
    assert keep_dims(array, (0, 2)).shape == (2, 1, 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=8), max_size=6))
def test_classes_are_those_of_a_plain_union_find(batches):
    space = LabelSpace()
    space.fresh(20)
    parent = list(range(20))

    def find(i: int) -> int:
        return i if parent[i] == i else find(parent[i])

    for batch in batches:
        left, right = np.array(batch).T
        space.unite(left, right)
        for a, b in batch:
            a, b = sorted((find(a), find(b)))
            parent[b] = a
    assert space.find(np.arange(20)).tolist() == [find(i) for i in range(20)]

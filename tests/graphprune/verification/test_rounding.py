"""What rounding moves is told from what is wrong."""

import numpy as np
import pytest
from builder import Builder

from graphprune.verification.closeness import Judge
from graphprune.verification.rounding import allow_rounding, shaken
from graphprune.verification.verify import compare

UNIT = 2.0**-23


def judged(run, wrong, x, rtol=1e-4, again=None):
    judge = Judge("y", rtol)
    (ours,), (theirs,) = run([x]), wrong([x])
    judge.see(ours, theirs, 0)
    before = judge.result().equal
    allow_rounding([judge], run, [x], rtol, UNIT, again=again)
    return before, judge.result().equal


def terms(arrays):
    """Terms of two sums: large ones that nearly cancel, and their sizes."""
    x = arrays[0].astype(np.float32) * np.float32(1e4 / 3)
    return np.stack([np.concatenate([x, -x[:, ::-1] * np.float32(0.9999)], axis=1), np.abs(np.tile(x, 2))], axis=1)


def cancelling(arrays):
    return [np.cumsum(terms(arrays), axis=2, dtype=np.float32)[:, :, -1]]


def in_another_order(arrays):
    order = np.random.default_rng(1).permutation(2 * arrays[0].shape[1])
    return [np.cumsum(terms(arrays)[:, :, order], axis=2, dtype=np.float32)[:, :, -1]]


def test_numbers_that_nearly_cancel_may_differ_by_what_that_leaves():
    x = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    assert judged(cancelling, in_another_order, x) == (False, True)


def test_a_wrong_part_is_wrong_for_all_that():
    x = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    assert judged(cancelling, lambda a: [in_another_order(a)[0] * np.float32([1.1, 1])], x) == (False, False)


def test_other_kernels_tell_where_inputs_are_integers():
    x = np.random.default_rng(0).integers(-1000, 1000, (1, 50))
    assert judged(cancelling, in_another_order, x) == (False, False)
    assert judged(cancelling, in_another_order, x, again=in_another_order) == (False, True)


def test_inputs_move_by_a_share_and_integers_stay():
    rng = np.random.default_rng(0)
    x, labels = np.float32([[1.0, -2.0, 0.0]]), np.array([[1, 2, 3]])
    moved, same = shaken([x, labels], 1e-3, rng)
    np.testing.assert_allclose(np.abs(moved - x), np.abs(x) * 1e-3, rtol=1e-3)
    assert moved.dtype == np.float32
    assert same is labels


@pytest.mark.parametrize(("factor", "equal"), [(1.0, True), (1.05, False)])
def test_a_channel_of_differences_beside_what_it_is_the_difference_of(factor, equal):
    """As a file and the same with its literals folded: the small channel keeps few digits in one of them."""

    def model(folded):
        b = Builder(17)
        x = b.conv(b.input(("n", 3, 8, 8)), 3, 4)
        if folded:
            small = b.call("Mul", x, b.literal(np.float32(1e-3 * factor)))
        else:
            far = b.call("Add", b.call("Mul", x, b.literal(np.float32(1e-3))), b.literal(np.float32(100)))
            small = b.call("Sub", far, b.literal(np.float32(100)))
        b.output(b.call("Concat", x, small, axis=1), ("n", 8, 8, 8))
        return b.model().SerializeToString()

    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    assert compare(model(folded=False), model(folded=True), x).equal is equal

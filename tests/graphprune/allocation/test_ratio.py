from types import SimpleNamespace

import numpy as np
import pytest

from graphprune.allocation import Limits, removable_groups, select_ratio


@pytest.fixture
def sets():
    return [
        SimpleNamespace(name="a", groups=np.arange(10), bypassed=False),
        SimpleNamespace(name="b", groups=np.arange(10, 14), bypassed=True),
    ]


def test_every_set_loses_its_share_the_least_important_first(sets):
    scores = np.arange(14.0)[::-1]
    removed = select_ratio(scores, 0.3, sets, removable_groups(sets, np.ones(14, dtype=bool)))
    assert np.flatnonzero(removed).tolist() == [7, 8, 9, 13]


def test_a_ratio_of_one_leaves_the_minimum_unless_bypassed(sets):
    removable = removable_groups(sets, np.ones(14, dtype=bool))
    removed = select_ratio(np.arange(14.0), 1.0, sets, removable, Limits(min_channels=2))
    assert np.flatnonzero(~removed).tolist() == [8, 9]


def test_aligned_widths(sets):
    removable = removable_groups(sets, np.ones(14, dtype=bool))
    removed = select_ratio(np.arange(14.0), 0.65, sets, removable, Limits(align=4))
    assert (~removed[:10]).sum() == 4
    assert (~removed[10:]).sum() == 4

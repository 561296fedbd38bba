import numpy as np
import pytest
from allocations import problem

from graphprune.allocation import Limits
from graphprune.passes.errors import BudgetError
from graphprune.search.space import Space


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_what_is_projected_uses_the_budget_up(share, unit):
    space = Space(problem(share, unit=unit))
    rng = np.random.default_rng(1)
    for _ in range(20):
        widths = space.project(rng.uniform(0.05, 1.0, len(space)))
        assert space.fits(widths)
        assert (widths >= space.low).all()
        assert (widths <= space.dense).all()
        for index in np.flatnonzero(widths < space.dense):
            wider = widths.copy()
            wider[index] += 1
            assert not space.fits(wider)


def test_equal_shares_stay_equal():
    space = Space(problem(0.4))
    shares = space.shares(space.project(np.ones(len(space))))
    assert shares.max() - shares.min() < 0.12  # steps of one channel of sixteen, and what rounding leaves


def test_the_least_important_channels_go():
    asked = problem(0.5)
    space = Space(asked)
    removed = space.removed([4, 24, 32])
    first = asked.graph.sets[0].groups
    assert set(first[~removed[first]]) == set(first[np.argsort(asked.scores[first])[-4:]])
    assert removed.sum() == 12


def test_widths_are_multiples_where_that_is_asked_for():
    space = Space(problem(0.4, limits=Limits(align=8)))
    for shares in np.random.default_rng(2).uniform(0.1, 1.0, (10, len(space))):
        assert all(width % 8 == 0 for width in space.project(shares))


def test_a_walk_always_ends_within_the_budget():
    space = Space(problem(0.3))
    rng = np.random.default_rng(3)
    for greedy in (True, False):
        for _ in range(10):
            before: list[int] = []
            for index in range(len(space)):
                before.append(space.clipped(index, 1.0 if greedy else float(rng.random()), before))
            assert space.fits(before)


def test_a_wide_start_leaves_the_floor_for_the_rest():
    space = Space(problem(0.3))
    first = space.clipped(0, 1.0, [])
    second = space.clipped(1, 1.0, [first])
    assert first == 16
    assert second < 24


def test_no_layer_is_emptied_and_a_budget_below_that_is_refused():
    assert (Space(problem(0.05)).low > 0).all()
    with pytest.raises(BudgetError, match="leaves channels in every layer"):
        Space(problem(1e-4))


def test_what_is_gone_stays_gone():
    asked = problem(0.5)
    forced = np.zeros(asked.graph.n_groups, dtype=bool)
    forced[asked.graph.sets[1].groups[:20]] = True
    space = Space(problem(0.5, forced=forced))
    widths = space.project(np.ones(len(space)))
    assert widths[1] <= 4
    assert space.removed(widths)[forced].all()

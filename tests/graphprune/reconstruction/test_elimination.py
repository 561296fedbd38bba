import numpy as np
import pytest
import torch

from graphprune.reconstruction.curves import rising
from graphprune.reconstruction.elimination import Reader, eliminate
from graphprune.reconstruction.fit import Problem
from graphprune.reconstruction.layers import Layer
from graphprune.reconstruction.moments import Moments, Ridge, Second, gram
from graphprune.reconstruction.teacher import Seen


def problem(channels=6, taps=2, outputs=3, rows=400):
    torch.manual_seed(0)
    x = torch.randn(rows, channels * taps) @ torch.randn(channels * taps, channels * taps)
    return x, torch.randn(channels * taps, outputs, dtype=torch.float64), np.tile(np.arange(channels), taps)


def second_of(x):
    centred = (x - x.mean(0)).double()
    return centred.T @ centred / len(x)


def least(second, weight, left):
    """Half the squared error of the best weights on the columns that are left."""
    best = torch.linalg.solve(second[left][:, left], second[left] @ weight)
    full = torch.zeros_like(weight)
    full[left] = best
    gap = full - weight
    return 0.5 * float((gap * (second @ gap)).sum())


def test_costs_are_those_of_solving_anew():
    x, weight, ids = problem()
    second = second_of(x)
    reader = Reader(second, weight, ids, share=1e-12)
    expected = [least(second, weight, np.flatnonzero(ids != c)) for c in range(6)]
    assert reader.costs(6).numpy() == pytest.approx(expected, rel=1e-5)


def test_sums_along_an_elimination_are_those_of_solving_anew():
    x, weight, ids = problem()
    second = second_of(x)
    order = eliminate([Reader(second, weight, ids, share=1e-12)], np.arange(6), np.ones(6))
    assert sorted(group for group, _ in order) == list(range(6))
    for number in range(1, 6):
        left = np.flatnonzero(~np.isin(ids, [group for group, _ in order[:number]]))
        assert sum(cost for _, cost in order[:number]) == pytest.approx(least(second, weight, left), rel=1e-4)


def test_a_channel_that_others_say_as_well_goes_first():
    x, weight, ids = problem(taps=1)
    x[:, 4] = x[:, 1] - 0.5 * x[:, 2]
    order = eliminate([Reader(second_of(x), weight, ids, share=1e-9)], np.arange(6), np.ones(6))
    assert order[0][0] in (1, 2, 4)
    assert order[0][1] < 1e-3 * order[1][1]


def test_without_a_refit_a_cost_is_the_energy_that_goes():
    x, weight, ids = problem()
    second = second_of(x)
    own = ids == 2
    expected = 0.5 * float((weight[own] * (second[own][:, own] @ weight[own])).sum())
    assert float(Reader(second, weight, ids, is_refitted=False).costs(6)[2]) == pytest.approx(expected)


def test_channels_that_only_one_of_two_readers_has_cost_nothing_in_the_other():
    x, weight, ids = problem()
    other = np.where(ids < 3, ids, -1)
    order = eliminate(
        [Reader(second_of(x), weight, ids), Reader(second_of(x), weight, other)], np.arange(6), np.ones(6)
    )
    assert len(order) == 6


def test_rising_costs_stay_and_falling_ones_are_pooled():
    assert rising(np.array([1.0, 2.0, 5.0])) == pytest.approx([1, 2, 5])
    pooled = rising(np.array([1.0, 4.0, 2.0, 9.0]))
    assert pooled == pytest.approx([1, 3, 3, 9])
    assert (np.diff(pooled) > 0).all()


def test_moments_of_parts_are_those_of_all_rows():
    x, _, _ = problem()
    second = Second(x[None, :100])
    second.add(x[None, 100:])
    torch.testing.assert_close(second.centred()[0], second_of(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gram(x[None], x[None])[0], x.double().T @ x.double(), rtol=1e-4, atol=1e-2)


def test_mean_and_variance_of_what_weights_give():
    x, weight, _ = problem()
    layer = Layer("l", "x", "l", "w", None, None, "linear")
    rows, nothing = (x + 2)[None], torch.zeros(len(x), weight.shape[1])
    given = (x + 2).double() @ weight
    mean, variance = Problem(layer, rows, nothing, None, 300, weight[None], nothing[:1].double()).spread(weight[None])
    torch.testing.assert_close(mean[0], given.mean(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(variance[0], given.var(0, correction=0), rtol=1e-4, atol=1e-3)


def test_a_ridge_finds_the_weights_and_stays_where_there_is_nothing_to_learn():
    x, weight, _ = problem()
    x = x + 3
    y = (x.double() @ weight + 2).float()[None]
    moments = Moments(x[None], 300, is_biased=True)
    cross, mean = moments.cross(y, True)
    found = Ridge(moments.second(True), 1e-9).solve(cross, torch.zeros_like(weight)[None])[0]
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-3)
    bias = mean[0] - found.T @ moments.mean(True)[0]
    torch.testing.assert_close(bias, torch.full_like(bias, 2), rtol=0, atol=0.02)
    kept = Ridge(moments.second(True), 10.0).solve(cross, weight[None])[0]
    torch.testing.assert_close(kept, weight, rtol=1e-3, atol=1e-3)


def test_a_singular_problem_is_solved_with_a_stronger_ridge():
    found = Ridge(torch.zeros(1, 3, 3, dtype=torch.float64), 1e-30).solve(
        torch.zeros(1, 3, 2, dtype=torch.float64), torch.ones(1, 3, 2, dtype=torch.float64)
    )
    assert torch.isfinite(found).all()


def test_errors_count_for_the_spread_of_what_is_wanted_and_less_in_early_layers():
    early, late = (Seen(16, spread=60.0, looked=20, depth=depth) for depth in (0.0, 1.0))
    assert late.worth(0.1) == pytest.approx(1 / 3)
    assert early.worth(0.1) == pytest.approx(0.1 / 3)

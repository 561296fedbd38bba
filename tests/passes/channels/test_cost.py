"""Counting without building, against counting what was built, term by term."""

import itertools

import numpy as np
import pytest

from graphprune.passes.channels.cost import CostModel, Polynomial, Term

#: Terms over six groups: shared axes, frozen indices, repeated groups, unequal counts, and up to three axes.
TERMS = [
    Term("stem", 9.0, (np.array([0, 1, 2]), np.array([-1, -1, -1]))),
    Term("conv", 4.0, (np.array([3, 3, 4, 4]), np.array([0, 1, 2, -1]))),
    Term("square", 2.0, (np.array([0, 1, 2]), np.array([0, 1, 2]))),
    Term("bias", 1.0, (np.array([5, 5, -1]),)),
    Term("fixed", 7.0, ()),
    Term("thinned", 0.5, (np.array([0, 1, 1, -1]), np.array([3, 4])), (np.array([2.0, 0.0, 5.0, 3.0]),)),
    Term("attention", 3.0, (np.array([0, 1]), np.array([3, 4]), np.array([5, -1]))),
]


def count(terms, kept) -> float:
    """The definition, written out."""
    total = 0.0
    for term in terms:
        counts = [*term.counts, *([1.0] * len(axis) for axis in term.axes[len(term.counts) :])]
        lengths = [
            sum(each for g, each in zip(axis, counted, strict=True) if g < 0 or kept[g])
            for axis, counted in zip(term.axes, counts, strict=True)
        ]
        total += term.factor * np.prod(lengths, dtype=float)
    return total


def masks():
    return (np.array(bits, dtype=bool) for bits in itertools.product([True, False], repeat=6))


def test_cost_is_the_sum_of_the_products():
    cost = Polynomial(TERMS, 6)
    for kept in masks():
        assert cost(kept) == count(TERMS, kept)


def test_terms_by_name():
    cost = Polynomial(TERMS, 6)
    per_term = cost.per_term(np.ones(6, dtype=bool))
    assert dict(zip(cost.names, per_term, strict=True)) == {
        "stem": 81.0,
        "conv": 64.0,
        "square": 18.0,
        "bias": 3.0,
        "fixed": 7.0,
        "thinned": 10.0,
        "attention": 24.0,
    }


@pytest.mark.parametrize("terms", [TERMS[:6], TERMS[:1], TERMS[4:5], TERMS[5:6], []])
def test_marginal_is_the_difference_that_one_group_makes(terms):
    cost = Polynomial(terms, 6)
    for kept in masks():
        marginal = cost.marginal(kept)
        assert marginal.shape == (6,)
        for group in np.flatnonzero(kept):
            without = kept.copy()
            without[group] = False
            assert marginal[group] == pytest.approx(cost(kept) - cost(without))


def test_marginal_of_three_axes_is_exact_where_a_group_is_in_one_of_them():
    cost = Polynomial(TERMS[6:], 6)
    kept = np.ones(6, dtype=bool)
    assert cost.marginal(kept).tolist() == [12.0, 12.0, 0.0, 12.0, 12.0, 12.0]


def test_a_wrong_factor_would_be_noticed():
    wrong = [Term(t.name, t.factor + (t.name == "conv"), t.axes) for t in TERMS]
    assert Polynomial(wrong, 6)(np.ones(6, dtype=bool)) != count(TERMS, np.ones(6))


def test_model_adds_the_terms_of_an_operator():
    twice = [Term("conv", 1.0, (np.array([0, 1]),)), Term("conv", 2.0, (np.array([0, -1]),))]
    model = CostModel(twice, [Term("w", 3.0, (np.array([0, 1]),))], 2)
    kept = np.array([True, False])
    assert model.macs(kept) == 1 + 4
    assert model.macs_by_operator(kept) == {"conv": 5.0}
    assert model.params(kept) == 3
    assert isinstance(model.params(kept), int)
    assert model.macs_marginal(kept).tolist() == [3.0, 1.0]
    assert model.params_marginal(kept).tolist() == [3.0, 3.0]


def test_no_terms_and_no_groups():
    assert Polynomial([], 0)(np.empty(0, dtype=bool)) == 0.0
    assert Polynomial([], 0).marginal(np.empty(0, dtype=bool)).shape == (0,)

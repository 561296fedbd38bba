import dataclasses
import itertools
import os

import numpy as np
import pytest
import staircase

from graphprune.allocation import LATENCY, Limits, Problem, allocate, count, program, removable_groups
from graphprune.allocation.choices import choices_of
from graphprune.allocation.program import Infeasible, Program, Unsolved
from graphprune.allocation.steps import on_steps
from graphprune.passes.errors import BudgetError, UsageError
from graphprune.widths import set_widths


@pytest.fixture(scope="module", params=[(0.0, 1.0), (0.1, 1.2)], ids=["sum", "trend"])
def model(request, tmp_path_factory):
    found = staircase.staircase_model(staircase.graph(), staircase.export(tmp_path_factory.mktemp("model")))
    return dataclasses.replace(found, trend=request.param)


def make(model, budgets, **options) -> Problem:
    graph = staircase.graph()
    dense = count(graph, graph.all_kept(), model)
    scores = options.pop("scores", np.random.default_rng(0).gamma(0.5, 1.0, graph.n_groups))
    absolute = {unit: share * (1.0 if unit == LATENCY else dense[unit]) for unit, share in budgets.items()}
    removable = removable_groups(graph.sets, graph.exact)
    return Problem(graph, scores, absolute, removable, latency=model, **options)


def widths(problem, removed):
    return set_widths(problem.graph, ~removed).tolist()


def can_grow(problem, removed):
    """Would the budgets leave room for one more channel of a set that has some?"""
    for choice, width in zip(choices_of(problem, 10_000), widths(problem, removed), strict=True):
        wider = removed.copy()
        wider[choice.order] = False
        wider[choice.removed(min((w for w in choice.widths if w > width > 0), default=width))] = True
        if not np.array_equal(wider, removed) and problem.fits(~wider):
            return True
    return False


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_nothing_better_is_found_by_trying_everything(model, share):
    problem = make(model, {LATENCY: share})
    removed = allocate(problem)
    assert problem.fits(~removed) or problem.count(~removed)[LATENCY] <= share * 1.002
    best = np.inf
    for chosen in itertools.product(*(zip(c.widths, c.losses, strict=True) for c in choices_of(problem, 10_000))):
        kept = problem.graph.all_kept()
        for choice, (width, _) in zip(choices_of(problem, 10_000), chosen, strict=True):
            kept[choice.removed(width)] = False
        if problem.fits(kept):
            best = min(best, sum(lost for _, lost in chosen))
    assert problem.scores[removed].sum() <= best * 1.01 + 1e-9


def test_it_is_repeatable(model):
    first, second = (allocate(make(model, {LATENCY: 0.5})) for _ in range(2))
    assert np.array_equal(first, second)


def test_several_budgets_hold_at_once(model):
    problem = make(model, {LATENCY: 0.7, "macs": 0.4, "params": 0.5})
    cost = problem.count(~allocate(problem))
    assert all(cost[unit] <= problem.budgets[unit] * 1.002 for unit in cost)


def test_free_channels_are_kept(model):
    # A block of 8 takes as long with 4 channels as with 8, so whatever is kept is whole blocks.
    problem = make(model, {LATENCY: 0.5})
    assert all(width % 8 == 0 for width in widths(problem, allocate(problem)))


def test_the_least_important_go(model):
    problem = make(model, {LATENCY: 0.6})
    removed = allocate(problem)
    for group_set in problem.graph.sets:
        gone, kept = (
            problem.scores[group_set.groups[mask]] for mask in (removed[group_set.groups], ~removed[group_set.groups])
        )
        assert not gone.size or not kept.size or gone.max() <= kept.min()


def test_a_worthless_branch_goes_as_a_whole(model):
    graph = staircase.graph()
    scores = np.ones(graph.n_groups)
    scores[graph.sets[1].groups] = 1e-6
    problem = make(model, {LATENCY: 0.7}, scores=scores)
    assert widths(problem, allocate(problem))[1] == 0


def test_what_is_gone_stays_gone_and_what_is_frozen_stays(model):
    graph = staircase.graph()
    forced = np.zeros(graph.n_groups, dtype=bool)
    forced[graph.sets[1].groups[:10]] = True
    problem = make(model, {LATENCY: 0.5}, forced=forced)
    removed = allocate(problem)
    assert removed[forced].all()
    frozen = make(model, {LATENCY: 0.5})
    frozen.removable[graph.sets[2].groups] = False
    assert not allocate(frozen)[graph.sets[2].groups].any()


def test_multiples_of_align_and_least_widths(model):
    problem = make(model, {LATENCY: 0.5}, limits=Limits(min_channels=6, align=16))
    assert set(widths(problem, allocate(problem))) <= {0, 16, 32}


def test_a_budget_out_of_reach_is_refused(model):
    with pytest.raises(BudgetError, match="times as fast by prediction; ask for less"):
        allocate(make(model, {LATENCY: 0.001}))
    with pytest.raises(BudgetError, match="of the macs cannot be reached"):
        allocate(make(model, {LATENCY: 0.9, "macs": 0.0001}))


class Flat:
    """The times of a layer that takes as long at every width."""

    def at(self, lengths):
        return 1.0


def test_where_no_narrower_width_is_faster_that_is_said_to_be_the_reason(model):
    flat = dataclasses.replace(model)
    flat.__dict__["curves"] = {kind: Flat() for kind in model.curves}
    with pytest.raises(BudgetError, match="with align='auto': too few of the narrower widths are faster"):
        allocate(make(flat, {"macs": 0.5}, is_on_steps=True))
    allocate(make(flat, {"macs": 0.5}))


def test_widths_on_the_staircase_are_never_slower_than_wider_ones(model):
    problem = make(model, {"macs": 0.5}, is_on_steps=True)
    for choice in on_steps(problem, choices_of(problem, 10_000)):
        assert not {4, 12, 20, 28} & set(choice.widths)
    removed = allocate(problem)
    assert problem.fits(~removed)
    assert all(width % 8 == 0 for width in widths(problem, removed))


@pytest.mark.parametrize("policy", ["knapsack", "threshold", "uniform"])
def test_every_policy_meets_a_budget_that_is_counted(model, policy):
    problem = make(model, {"macs": 0.5})
    removed = allocate(problem, policy)
    found = problem.count(~removed)["macs"] / problem.budgets["macs"]
    assert 0.7 < found <= 1.002


def test_uniform_takes_the_same_share_everywhere(model):
    problem = make(model, {LATENCY: 0.6})
    found = widths(problem, allocate(problem, "uniform"))
    assert max(found) - min(found) <= staircase.BLOCK


def test_a_policy_is_known_by_its_name(model):
    with pytest.raises(UsageError, match="threshold"):
        allocate(make(model, {LATENCY: 0.5}), "threshold")
    with pytest.raises(UsageError, match="auto or one of"):
        allocate(make(model, {"macs": 0.5}), "best")


def test_channels_that_are_worth_nothing_are_kept_where_no_budget_needs_them(model):
    scores = np.zeros(staircase.graph().n_groups)
    scores[staircase.graph().sets[1].groups] = 1.0
    problem = make(model, {LATENCY: 0.7, "params": 0.8}, scores=scores)
    removed = allocate(problem)
    assert problem.fits(~removed)
    assert widths(problem, removed) == [32, 32, 0]
    assert not can_grow(problem, removed)


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_without_latency_any_width_may_be_had(unit, share):
    problem = make(None, {unit: share})
    removed = allocate(problem, "knapsack")
    # One channel of so small a network is up to three percent of it, so that more may be left over than one.
    assert 0.97 <= problem.count(~removed)[unit] / problem.budgets[unit] <= 1.0
    assert not can_grow(problem, removed)


@pytest.mark.parametrize("trouble", ["widest", "infeasible", "unsolved"])
def test_what_the_program_only_comes_close_to_is_corrected(model, monkeypatch, trouble):
    """A solver that does not find what fits, or finds nothing at all the second time, or ever."""
    solve = Program.solve

    def poor(program, budgets, calls=[]):  # noqa: B006
        calls.append(None)
        if trouble == "unsolved":
            raise Unsolved
        if trouble == "widest":
            return np.array([choice.widths[-1] for choice in program.choices])
        if len(calls) > 1:
            raise Infeasible
        return solve(program, {unit: 1.1 * budget for unit, budget in budgets.items()})

    monkeypatch.setattr(Program, "solve", poor)
    problem = make(model, {LATENCY: 0.5})
    assert problem.fits(~allocate(problem))


def test_a_search_that_was_cut_short_is_not_called_infeasible(model, monkeypatch):
    """HiGHS may come to its limit of nodes before it has found anything."""
    real, limits = program.milp, []

    def short(*arguments, options, **others):
        limits.append(options["node_limit"])
        found = real(*arguments, options=options, **others)
        if len(limits) == 1:
            found.x, found.status = None, 1
        return found

    monkeypatch.setattr(program, "milp", short)
    problem = make(model, {LATENCY: 0.5})
    assert problem.fits(~allocate(problem))
    assert limits[1] == 10 * limits[0]


def test_the_solver_prints_nothing(model, monkeypatch, capfd):
    real = program.milp

    def chatty(*arguments, **options):
        os.write(1, b"HighsMipSolverData")
        return real(*arguments, **options)

    monkeypatch.setattr(program, "milp", chatty)
    allocate(make(model, {LATENCY: 0.5}))
    os.write(1, b"this is")
    assert capfd.readouterr().out == "this is"


def test_equal_shares_lie_on_the_staircase_too(model):
    problem = make(model, {"macs": 0.5}, is_on_steps=True)
    found = widths(problem, allocate(problem, "uniform"))
    for width, choice in zip(found, on_steps(problem, choices_of(problem, 10_000)), strict=True):
        assert width in choice.widths

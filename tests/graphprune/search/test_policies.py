"""The policies on a reward that is known: how near the widths are to some that nobody told them."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
import torch
from allocations import problem

import graphprune as gp
from graphprune.allocation import SEARCHES, allocate, allocator
from graphprune.config import CompressConfig
from graphprune.passes.errors import UsageError
from graphprune.search import Search, SearchOptions, Trial
from graphprune.search.bee_colony import _Colony
from graphprune.search.trials import Trials
from graphprune.widths import set_widths

BEST = np.array([4, 23, 12])
POLICIES = sorted(SEARCHES)


class Known:
    """Evaluates by the distance to BEST, and counts how often it is asked."""

    def __init__(self, graph):
        self.graph, self.calls = graph, 0

    def __call__(self, kept):
        self.calls += 1
        distance = np.abs(set_widths(self.graph, kept) - BEST) / BEST
        return Trial(1 / (1 + float(distance.sum())), 0.0)


def searching(evaluations=60, seed=0, fingerprint="known", **options):
    asked = problem(0.35)
    known = Known(asked.graph)
    settings = SearchOptions(**{"evaluations": evaluations, "start": "", **options})
    search = Search(known, fingerprint, settings, seed)
    return dataclasses.replace(asked, search=search), known


@pytest.mark.parametrize("policy", POLICIES)
def test_a_search_finds_something_better_than_equal_shares(policy):
    seen = []
    asked, known = searching(progress=lambda done, total, best: seen.append((done, total, best.reward)))
    removed = allocate(asked, policy)
    assert asked.fits(~removed)
    assert [done for done, _, _ in seen] == list(range(1, 61))
    assert {total for _, total, _ in seen} == {60}
    best = [reward for _, _, reward in seen]
    assert best == sorted(best)
    assert known(~removed).reward == best[-1] > best[0] + 0.05


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_allocation(policy):
    first, second = (allocate(searching(seed=5)[0], policy) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_search_that_was_stopped_goes_on_from_its_journal(policy, tmp_path):
    journal = tmp_path / "search.json"
    whole = allocate(searching(30)[0], policy)

    def stop(done, total, best):
        if done == 12:
            raise KeyboardInterrupt

    asked, known = searching(30, journal=journal, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        allocate(asked, policy)
    before = known.calls
    asked, known = searching(30, journal=journal)
    assert (allocate(asked, policy) == whole).all()
    assert before + known.calls <= 30
    assert known.calls < 30
    assert journal.with_suffix(".svg").read_text().startswith("<svg")


def test_a_journal_of_something_else_is_replaced(tmp_path, caplog):
    journal = tmp_path / "search.json"
    for content, complaint in (("no json", "is no journal"), ('{"trials": {"a": 3}}', "is no journal")):
        journal.write_text(content)
        allocate(searching(3, journal=journal)[0], "random")
        assert complaint in caplog.text
        caplog.clear()
    assert json.loads(journal.read_text())["fingerprint"] == "known"
    asked, known = searching(3, journal=journal, fingerprint="other")
    allocate(asked, "random")
    assert "of another model or of other images" in caplog.text
    assert known.calls == 3


def test_one_evaluation_is_the_uniform_allocation():
    for policy in POLICIES:
        asked, known = searching(1)
        widths = set_widths(asked.graph, ~allocate(asked, policy))
        assert known.calls == 1
        assert np.ptp(widths / np.array([16, 24, 32])) < 0.12


def test_a_search_needs_something_that_tries():
    for policy in POLICIES:
        with pytest.raises(UsageError, match=f"policy {policy} tries allocations out on images: give some"):
            allocate(problem(), policy)
    with pytest.raises(UsageError, match="at least one evaluation, not 0"):
        SearchOptions(evaluations=0)
    with pytest.raises(UsageError, match="at least two images"):
        SearchOptions(images=1)


def test_a_budget_that_is_corrected_is_searched_for_once():
    asked, known = searching(20)
    again = allocator("random")
    first = again(asked)
    calls = known.calls
    tighter = dataclasses.replace(asked, budgets={"macs": 0.8 * asked.budgets["macs"]})
    second = again(tighter)
    assert known.calls == calls
    assert tighter.fits(~second)
    before, after = (set_widths(asked.graph, ~found) for found in (first, second))
    assert (after <= before).all()


def test_bees_change_only_sets_that_have_a_choice(monkeypatch):
    asked = problem(0.8, widths=(16,) * 12)
    removable = np.zeros_like(asked.removable)
    for index in (2, 5, 8):
        removable[asked.graph.sets[index].groups] = True
    search = Search(lambda kept: Trial(None, 1.0), "known", SearchOptions(evaluations=60, start=""), 0)
    colony = _Colony(Trials(dataclasses.replace(asked, removable=removable, search=search), "bee-colony"))
    space, changed = colony.trials.space, []
    assert space.open.tolist() == [2, 5, 8]
    project = space.project
    monkeypatch.setattr(space, "project", lambda shares: changed.append(shares != source) or project(shares))
    source = colony._sources[0].shares
    for _ in range(40):
        colony._improve(0)
    assert not np.delete(np.array(changed), space.open, axis=1).any()
    assert np.array(changed).any(axis=1).sum() >= 28  # two sources may have the same width there


@pytest.mark.parametrize("policy", POLICIES)
def test_the_random_numbers_of_the_caller_go_on_as_without_a_search(policy):
    asked, _ = searching(4)  # what builds its network draws numbers, too

    def drawn(between):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        between()
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    assert drawn(lambda: allocate(asked, policy)) == drawn(lambda: None)


def test_a_search_does_not_start_from_a_search():
    with pytest.raises(UsageError, match="cannot start from policy random, which searches itself"):
        allocate(searching(4, start="random")[0], "bee-colony")


def test_what_an_agent_lacks_is_named(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gymnasium" else find(name))
    missing = r"policy ddpg needs gymnasium: pip install 'graphprune\[search\]'"
    with pytest.raises(UsageError, match=missing):
        allocate(searching(2)[0], "ddpg")
    with pytest.raises(UsageError, match=missing):  # before a model is read, or a latency measured
        CompressConfig(recipe="combined", speedup=2.0)
    with pytest.raises(UsageError, match=missing):
        gp.plan(problem().graph, macs=0.5, policy="ddpg")


def test_the_reward_prefers_agreement_and_then_nearness():
    assert Trial(0.8, 0.5).reward > Trial(0.8, 0.9).reward
    assert Trial(0.9, 0.3).reward > Trial(0.8, 0.1).reward
    assert Trial(None, 0.2).reward > Trial(None, 0.3).reward
    assert Trial(0.5, 5.0).reward == Trial(0.5, 1.0).reward


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_worse_than_what_needs_no_search(policy, monkeypatch):
    asked, known = searching(3, start="auto")
    plain = allocate(asked)
    equal = known(~allocate(searching(1)[0], policy)).reward
    assert known(~allocate(asked, policy)).reward >= max(known(~plain).reward, equal)
    # Narrower in one set than a search goes.
    narrow, uneven = asked.graph.sets[1].groups, plain.copy()
    uneven[narrow] = True
    uneven[narrow[np.argmax(asked.scores[narrow])]] = False
    monkeypatch.setattr("graphprune.search.trials.allocate", lambda problem, start: uneven)
    reward = {uneven.tobytes(): 2.0}
    seen = Search(lambda kept: Trial(reward.get((~kept).tobytes(), 0.5), 0.0), "known", asked.search.options, 0)
    assert (allocate(dataclasses.replace(asked, search=seen), policy) == uneven).all()


@pytest.mark.parametrize("start", ["", "auto"])
def test_an_agent_that_knows_nothing_begins_where_the_search_does(start):
    from graphprune.search.environment import PruningEnvironment

    trials = Trials(searching(10, start=start)[0], "ddpg")
    environment = PruningEnvironment(trials)
    environment.reset()
    for _ in range(len(trials.space)):
        *_, facts = environment.step(np.zeros(1, np.float32))
    assert len(trials.starts) == (2 if start else 1)
    if start:
        assert facts["widths"].tolist() == trials.starts[1].tolist()
    for action, expected in ((-1.0, trials.space.low), (1.0, trials.space.dense)):
        environment.reset()
        environment.step(np.full(1, action, np.float32))
        assert environment._before[0] == min(expected[0], environment._space.clipped(0, 1.0, []))


def test_the_noise_of_the_agent_fades_after_its_random_episodes():
    from graphprune.search.ddpg import _LEAST_NOISE, _NOISE, _fading_noise

    noise, seen = _fading_noise(20, 4), []
    for _ in range(20):
        noise.reset()  # the agent does so before every episode
        seen.append(float(noise._sigma[0]))
    assert seen[:5] == [_NOISE] * 5
    assert all(a > b for a, b in itertools.pairwise(seen[4:]))
    assert seen[-1] == pytest.approx(_LEAST_NOISE)


def test_a_large_seed_is_one_the_agent_takes():
    asked, _ = searching(4, seed=2**40 + 1)
    assert asked.fits(~allocate(asked, "ddpg"))

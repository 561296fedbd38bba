import dataclasses

import numpy as np
import pytest
import torch
from allocations import problem
from torch import nn

import graphprune as gp
from graphprune.allocation import Limits, Problem, allocate, count, removable_groups
from graphprune.passes.errors import BudgetError, UsageError
from graphprune.widths import set_widths


def chosen(share, widths, **settings):
    return dataclasses.replace(problem(share, **settings), widths=np.array(widths))


def test_chosen_widths_that_cost_the_budget_are_taken_as_they_are():
    asked = chosen(1.0, [5, 20, 11])
    kept = ~allocate(dataclasses.replace(asked, budgets={"macs": _cost(asked, [5, 20, 11])}), "fixed")
    assert set_widths(asked.graph, kept).tolist() == [5, 20, 11]


def _cost(asked, widths):
    kept = asked.graph.all_kept()
    for group_set, width in zip(asked.graph.sets, widths, strict=True):
        kept[group_set.groups[width:]] = False
    return count(asked.graph, kept)["macs"]


@pytest.mark.parametrize("share", [0.7, 0.4, 0.25])
def test_on_the_way_there_and_beyond_the_proportions_stay(share):
    asked = chosen(share, [8, 12, 16])
    kept = ~allocate(asked, "fixed")
    assert asked.fits(kept)
    widths = set_widths(asked.graph, kept) / np.array([16, 24, 32])
    assert np.ptp(widths) < 0.1
    assert count(asked.graph, kept)["macs"] > 0.85 * asked.budgets["macs"]


def test_the_importance_says_which_channels_stay():
    asked = chosen(0.5, [8, 12, 16])
    removed = allocate(asked, "fixed")
    for group_set in asked.graph.sets:
        scores, gone = asked.scores[group_set.groups], removed[group_set.groups]
        assert scores[gone].max() < scores[~gone].min()


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.inner, self.outer = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.outer(self.inner(x).relu())).relu().mean((2, 3)))


def test_a_branch_that_was_to_keep_something_is_not_emptied_for_a_tighter_budget():
    graph = gp.trace(Branch().eval(), (torch.zeros(1, 3, 6, 6),))
    inner = next(group_set.index for group_set in graph.sets if group_set.bypassed)
    widths = np.where(np.arange(len(graph.sets)) == inner, 2, 8)

    def asked(share):
        budgets = {"macs": share * graph.cost.dense["macs"]}
        removable = removable_groups(graph.sets, graph.exact)
        return Problem(graph, np.arange(graph.n_groups, dtype=float), budgets, removable, widths=widths)

    least = graph.all_kept()
    least[graph.sets[inner].groups[1:]] = False
    share = graph.cost.macs(least) / graph.cost.dense["macs"]
    assert set_widths(graph, ~allocate(asked(share), "fixed"))[inner] == 1
    with pytest.raises(BudgetError, match="as was chosen"):
        allocate(asked(0.99 * share), "fixed")
    emptied = dataclasses.replace(asked(0.99 * share), widths=np.where(widths == 2, 0, widths))
    assert set_widths(graph, ~allocate(emptied, "fixed"))[inner] == 0


def test_steps_are_kept_to():
    asked = chosen(0.5, [8, 13, 17], limits=Limits(align=4))
    assert (set_widths(asked.graph, ~allocate(asked, "fixed")) % 4 == 0).all()


def test_widths_that_cannot_reach_the_budget_are_refused():
    with pytest.raises(BudgetError, match="as was chosen"):
        allocate(chosen(0.05, [16, 24, 31]), "fixed")
    with pytest.raises(UsageError, match="there are none"):
        allocate(problem(), "fixed")

import pytest
import torch

import graphprune as gp
from graphprune.models import resnet20


@pytest.mark.parametrize("share", [0.3, 0.45, 0.5, 0.62])
def test_the_same_share_everywhere_uses_the_budget_up(share):
    torch.manual_seed(0)
    graph = gp.trace(resnet20().eval(), (torch.zeros(1, 3, 32, 32),))
    plan = gp.plan(graph, macs=share, policy="uniform")
    removed = graph.removed_by(plan)
    found = graph.cost.macs(~removed) / graph.cost.macs(graph.all_kept())
    assert 0.99 * share <= found <= share
    kept = [(len(s.groups) - removed[s.groups].sum()) / len(s.groups) for s in graph.sets]
    assert max(kept) - min(kept) < 2 / 16  # a step of the narrowest

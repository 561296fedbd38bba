import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.models import resnet20


@pytest.mark.parametrize("policy", ["threshold", "uniform", "knapsack"])
def test_a_set_that_may_go_as_a_whole_keeps_enough_channels_or_none(policy):
    torch.manual_seed(0)
    graph = gp.trace(resnet20().eval(), (torch.zeros(1, 3, 32, 32),))
    scores = np.random.default_rng(0).random(graph.n_groups) ** 4
    removed = graph.removed_by(gp.plan(graph, macs=0.4, min_channels=5, importance=scores, policy=policy))
    kept = [int(len(s.groups) - removed[s.groups].sum()) for s in graph.sets]
    assert any(s.bypassed for s in graph.sets)
    assert all(width == 0 or width >= 5 for width in kept)

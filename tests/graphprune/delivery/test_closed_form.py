"""What was fitted in closed form, as a result by itself and as a start of a training."""

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.data import ImageSource, Preprocess
from graphprune.delivery.closed_form import ClosedForm


class Trunk(nn.Module):
    """Layers that write a sum, and one that reads it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.expand = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.project, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.enter(x)
        return self.head((x + self.project(self.expand(x).relu())).mean((2, 3)))


@pytest.mark.parametrize("rotates", [True, False])
def test_a_start_of_a_training_keeps_the_features_that_the_teacher_has(rotates):
    """In another basis they would be compared with those of other channels."""
    graph = gp.trace(Trunk().eval(), (torch.zeros(2, 3, 8, 8),))
    images = np.random.default_rng(0).normal(size=(160, 8, 8, 3)).astype(np.float32)
    source = ImageSource(images, Preprocess.of((8, 8), 3, mean=(0.0,), std=(1.0,)))
    closed_form = ClosedForm(graph, source, 0, rotates=rotates)
    (trunk,) = (one for one in graph.sets if len(one.groups) == 6)
    plan = graph.plan(np.isin(np.arange(graph.n_groups), trunk.groups[:2]))
    closed_form.fit(0, plan)
    turned = {layer.layer for layer in closed_form.layers[0] if layer.is_rotated}
    assert turned == ({"enter.weight", "project.weight"} if rotates else set())

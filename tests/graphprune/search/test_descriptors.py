import numpy as np
import torch
from torch import nn

import graphprune as gp
from graphprune.allocation import Problem
from graphprune.search.descriptors import NAMES, describe


def described(net, shape):
    """Per column the values of the sets, by the name of the set's first layer."""
    graph = gp.trace(net.eval(), (torch.zeros(2, *shape),))
    budgets = {"macs": 0.5 * graph.cost.dense["macs"]}
    table = describe(Problem(graph, np.ones(graph.n_groups), budgets, graph.all_kept()))
    names = [group_set.name for group_set in graph.sets]
    return {column: dict(zip(names, table[:, at].tolist(), strict=True)) for at, column in enumerate(NAMES)}


def test_a_layer_is_described_by_its_sizes():
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)),
    )
    found = described(net, (3, 8, 8))
    assert found["inputs"] == {"0": 3 / 8, "2": 4 / 8, "6": 1.0}
    assert found["outputs"] == {"0": 4 / 6, "2": 4 / 6, "6": 1.0}  # two groups of a convolution lose channels in pairs
    assert found["kernel"] == {"0": 1.0, "2": 1 / 3, "6": 1 / 3}
    assert found["stride"] == {"0": 1.0, "2": 0.5, "6": 0.5}
    assert found["positions"] == {"0": 1.0, "2": 1.0, "6": 1 / 16}
    assert found["grouped"] == {"0": 0.0, "2": 1.0, "6": 0.0}
    assert found["linear"] == {"0": 0.0, "2": 0.0, "6": 1.0}


def test_a_transposed_convolution_reads_its_inputs():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU()
    net = nn.Sequential(*layers, nn.Conv2d(6, 2, 1))
    found = described(net, (3, 8, 8))
    assert found["inputs"] == {"0": 3 / 8, "2": 1.0}
    assert found["positions"] == {"0": 0.25, "2": 1.0}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 16, 2, stride=2), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(x).relu().mean(1))


def test_a_linear_layer_on_tokens_has_their_number_of_positions():
    found = described(Tokens(), (3, 8, 8))
    assert found["positions"] == {"patches": 1.0, "mix": 1.0}
    assert found["stride"] == {"patches": 1.0, "mix": 0.5}

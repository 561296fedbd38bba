"""A small allocation problem on a chain of convolutions."""

import numpy as np
import torch
from torch import nn

import graphprune as gp
from graphprune.allocation import Limits, Problem, count, removable_groups


def problem(share=0.5, widths=(16, 24, 32), limits=None, unit="macs", **settings):
    torch.manual_seed(0)
    layers, inputs = [], 3
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    graph = gp.trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * 16, 5)).eval(), (torch.zeros(1, 3, 4, 4),))
    scores = np.random.default_rng(0).random(graph.n_groups)
    removable = removable_groups(graph.sets, graph.exact, False)
    dense = count(graph, graph.all_kept())[unit]
    return Problem(graph, scores, {unit: share * dense}, removable, limits or Limits(), **settings)

import dataclasses

import pytest
import torch
from torch import nn

from graphprune.config import CompressConfig
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.student import Student

CONFIG = CompressConfig(macs=0.5)


def student(config, *layers):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    teacher = capture(net.eval(), (torch.zeros(2, 1, 8, 8),))
    return Student(teacher, analyze(teacher), config, 0, [])


def test_a_sensitivity_without_what_it_looks_at_is_refused_before_any_step():
    config = dataclasses.replace(CONFIG, sensitivity="bn_scale")
    with pytest.raises(UsageError, match="bn_scale needs BatchNorm layers"):
        student(config)
    assert student(config, nn.BatchNorm2d(8)).set.criterion.needs == "weights"

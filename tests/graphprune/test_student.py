import dataclasses

import pytest
import torch
from digit_runs import SETTINGS, engine
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


def test_weights_that_are_held_at_zero_do_not_count_in_the_norm_that_is_clipped():
    run = engine(dataclasses.replace(SETTINGS, sigma=1.0, grad_clip=0.5))
    (student,) = run.students
    for parameter in student.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ((weight, mask),) = student._thinned
    assert 0 < mask.sum() < mask.numel()
    weight.grad.fill_(1.0)
    student.learn(0, run.schedule)
    torch.testing.assert_close(weight.grad, 0.5 / mask.sum().sqrt() * mask)

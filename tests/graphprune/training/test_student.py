import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from digit_runs import SETTINGS, engine
from torch import nn

from graphprune.config import CompressConfig
from graphprune.importance.learned import Learned
from graphprune.passes.errors import UsageError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture
from graphprune.training.sparse_set import SparseSet
from graphprune.training.student import Student

CONFIG = CompressConfig(macs=0.5)


def student(config, *layers):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    teacher = capture(net.eval(), (torch.zeros(2, 1, 8, 8),))
    return Student(teacher, analyze(teacher), config, 0, [], Learned.of(teacher).nodes)


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


FROZEN = dataclasses.replace(SETTINGS, epochs=1.5, bn_freeze=0.6, checkpoint_steps=1)


def statistics(run):
    return {name: value.clone() for name, value in run.students[0].module.named_buffers() if "running" in name}


@cache
def uninterrupted():
    return engine(FROZEN).run()[0].state_dict


@pytest.mark.parametrize("stopped_after", [0, 2])  # steps of batch norm as in inference
def test_batch_norm_keeps_its_statistics_once_they_are_frozen(tmp_path, stopped_after):
    seen = []

    def watch(done, *_):
        seen.append(statistics(run))
        if len(seen) == stop:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "checkpoint.pt", "progress": watch}
    run = engine(FROZEN, **options)
    frozen_at = run.schedule.freeze_bn_at
    stop = frozen_at + stopped_after + 1  # the checkpoint is that of the step before
    with pytest.raises(KeyboardInterrupt):
        run.run()
    seen.pop()
    stop = 0
    run = engine(FROZEN, **options)
    (result,) = run.run(resume=True)
    assert len(seen) == run.schedule.total
    for name, value in statistics(run).items():
        assert all(torch.equal(later[name], value) for later in seen[frozen_at:]), name
        assert not torch.equal(seen[frozen_at - 1][name], value), name
    assert all(torch.equal(value, uninterrupted()[name]) for name, value in result.state_dict.items())


def test_statistics_that_follow_the_batches_are_estimated_anew_at_the_end():
    last = {}
    run = engine(dataclasses.replace(FROZEN, bn_freeze=1.0), progress=lambda *_: last.update(statistics(run)))
    run.run()
    assert not any(torch.equal(value, last[name]) for name, value in statistics(run).items())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.conv, self.norm = nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.lstm, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.lstm(self.norm(self.conv(self.first(x))).flatten(2).transpose(1, 2))[0].mean(1))


def test_nothing_but_norms_computes_as_in_inference_once_they_are_frozen():
    teacher = capture(Recurrent().eval(), (torch.zeros(2, 1, 8, 8),))
    made = Student(teacher, analyze(teacher), CONFIG, 0, [], Learned.of(teacher).nodes)

    def modes():
        nodes = made.tapped.inner.graph.nodes
        norms = [node.args[5] for node in nodes if node.target is torch.ops.aten.batch_norm.default]
        return norms, [node.args[6] for node in nodes if node.target is torch.ops.aten.lstm.input]

    assert modes() == ([True, True], [True])
    made.module.train()
    made.freeze_bn([torch.randn(4, 1, 8, 8)])
    assert modes() == ([False], [True])  # the norm of the convolution is folded into it


class Branched(nn.Module):
    """A residual branch whose convolutions have biases before their norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.last(self.first(x))).mean((2, 3)))


def test_a_branch_that_went_does_not_run_away_once_its_norm_is_frozen():
    """Its norm sees a constant: with fixed statistics, the bias before it would move it by 1 / sqrt(epsilon)."""
    torch.manual_seed(0)
    net, images = Branched(), torch.randn(16, 1, 8, 8)
    net(images)
    teacher = capture(net.eval(), (images,))
    graph = analyze(teacher)
    made = Student(teacher, graph, CompressConfig(macs=0.5, lr=0.02), 0, [], Learned.of(teacher).nodes)
    gone = np.zeros(graph.n_groups, dtype=np.bool_)
    gone[np.unique(graph.axes["first.0.weight", 0])] = True
    made.set.expected = torch.from_numpy(gone)
    made.index.scale_((~made.set.expected).float())
    made._cut(~gone)
    assert "first.0.weight" not in dict(made.module.named_parameters())
    made.freeze_bn([images])
    losses = []
    for _ in range(6):
        loss = (made(images)[0][0] - teacher(images).detach()).square().mean()
        made.optimizer.zero_grad()
        loss.backward()
        made.optimizer.step()
        losses.append(float(loss.detach()))
    assert max(losses[1:]) < losses[0]


@pytest.mark.parametrize("is_removed", [True, False])
def test_nothing_is_made_smaller_once_all_that_goes_is_removed(monkeypatch, is_removed):
    shrunk = []
    shrink = SparseSet.shrink
    monkeypatch.setattr(SparseSet, "shrink", lambda *args: (shrunk.append(run.done), shrink(*args)))
    run = engine(dataclasses.replace(SETTINGS, epochs=1.5, shrink=is_removed))
    run.run()
    settled = [step for step in shrunk if step >= run.schedule.settle_from]
    assert settled == ([] if is_removed else list(range(run.schedule.settle_from, run.schedule.total)))
    assert len(shrunk) > len(settled)

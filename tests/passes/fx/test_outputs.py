"""How far outputs are apart, and how they hold the samples of a batch."""

import pytest
import torch
from torch import nn

from graphprune.passes.fx.outputs import difference, is_single, joined, layouts, repeats, turned

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.25),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), INF),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), INF),
        (torch.tensor([True]), torch.tensor([False]), INF),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, 2.0]), INF),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, NAN]), INF),
        (torch.tensor([1.0, INF]), torch.tensor([1.0, INF]), 0.0),
        (torch.tensor([1.0, INF]), torch.tensor([1.0, -INF]), INF),
        (torch.tensor([]), torch.tensor([]), 0.0),
        (torch.tensor([3 + 4j]), torch.tensor([3 + 4j + 1e-9]), 0.0),
        (torch.tensor([3 + 4j]), torch.tensor([-3 + 4j]), 1.2),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.zeros(2), torch.ones(2), 1e12),
    ],
)
def test_difference_is_relative_and_never_forgives(reference, other, expected):
    assert difference(reference, other) == pytest.approx(expected, abs=1e-6)


class Mixed(nn.Module):
    """Samples first, second, in none of the dimensions, and mixed; and a buffer and an input that are written to."""

    def __init__(self):
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, x, scale):
        self.calls.add_(1)
        x.mul_(scale)
        return x, x.t(), torch.arange(3.0), x.sum(0), x.reshape(1, -1).cumsum(1)


SAMPLE = (torch.tensor([[1.0, 2.0, 4.0]]), 2)


def test_the_dimension_of_the_samples_is_found_and_nothing_is_left_changed():
    model, samples = Mixed(), [SAMPLE, turned(SAMPLE)]
    found = layouts(model, samples)
    assert [layout.dims for layout in found] == [(0,), (1,), (), None, None]
    assert [layout.shape for layout in found] == [(2, 3), (3, 2), (3,), (3,), (1, 6)]
    assert model.calls == 0
    assert torch.equal(SAMPLE[0], torch.tensor([[1.0, 2.0, 4.0]]))


def test_two_samples_are_one_batch():
    both = joined([SAMPLE, turned(SAMPLE)])
    assert both[0].tolist() == [[1, 2, 4], [4, 2, 1]]
    assert both[1] == 2
    assert is_single(SAMPLE)
    assert not is_single(both)
    assert not is_single((3, torch.tensor(1.0)))


def test_chance_is_noticed():
    assert repeats(Mixed(), SAMPLE)
    assert not repeats(nn.Dropout(0.5), (torch.ones(1, 99),))

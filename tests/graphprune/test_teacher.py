import pytest
import torch
from torch import nn

from graphprune.errors import UsageError
from graphprune.passes.fx.capture import capture
from graphprune.teacher import Teacher


class Net(nn.Module):
    """One that tells left from right."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


def captured(net):
    torch.manual_seed(0)
    return capture(net().eval(), (torch.randn(2, 3, 8, 8),))


def test_the_mean_answer_to_all_views_is_what_each_is_taught():
    model, (a, b) = captured(Net), torch.randn(2, 3, 8, 8)
    batch = torch.stack([a, a.flip(-1), b, b.flip(-1)])
    single, pairs = Teacher(model, ["relu"]), Teacher(model, ["relu"], views=2)
    (answers,), features = single.targets(batch)
    (means,), same_features = pairs.targets(batch)
    torch.testing.assert_close(answers, model(batch))
    assert not torch.allclose(answers[0], answers[1])
    torch.testing.assert_close(means, answers.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0))
    torch.testing.assert_close(same_features, features)
    torch.testing.assert_close(pairs.answers(batch), [answers])  # what agreement is measured against


class Map(Net):
    def forward(self, x):
        return self.conv(x)


def test_answers_that_move_with_the_image_have_no_mean():
    teacher = Teacher(captured(Map), [], views=2)
    with pytest.raises(UsageError, match=r"--views .* output of shape \(4, 4, 8, 8\) .* leave it out"):
        teacher.targets(torch.randn(4, 3, 8, 8))

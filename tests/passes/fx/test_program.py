"""What torch.export is given: batches that may vary and those that may not, and its errors in words."""

import re

import pytest
import torch
from torch import nn

from graphprune.passes.errors import CaptureError
from graphprune.passes.fx.analyze import analyze
from graphprune.passes.fx.capture import capture


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(2, 4))


def test_a_fixed_batch_is_accepted_and_said(caplog):
    captured = capture(FixedBatch(), (torch.randn(2, 4),))
    assert captured(torch.randn(2, 4)).shape == (2, 3)
    assert "batch size of the model is fixed at 2" in caplog.text


class OneImage(nn.Module):
    """A batch of 1 is written into its code: with two images, one is read as more channels of the other."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.conv, self.fc = form, nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.form == "view":
            return self.fc(x.view(1, 6 * 6 * 6)[:, :6])
        x = x.squeeze(0).flatten(1).mean(1) if self.form == "squeeze" else x.reshape(1, 6, -1).mean(2)
        return self.fc(x.reshape(1, 6) if self.form == "squeeze" else x)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("reshape", "two samples in a batch give something else than each by itself"),
        ("view", r"torch\.export cannot capture OneImage at .*test_program\.py"),
        ("squeeze", "cannot capture OneImage"),
    ],
)
def test_a_batch_of_one_in_the_models_code_is_kept(form, reason, caplog):
    model, x = OneImage(form).eval(), torch.randn(1, 3, 8, 8)
    captured = capture(model, (x,))
    assert torch.equal(captured(x), model(x))
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(f"the batch size of the model is fixed at 1: .*{reason}", said)
    graph = analyze(captured)
    assert graph.n_groups == (5 if form == "view" else 6)  # the first channel alone is read


class Data(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


def test_a_model_that_cannot_be_captured_is_an_error_with_its_source_line():
    with pytest.raises(CaptureError, match=r"torch.export cannot capture Data at .*test_program.py:\d+: ") as caught:
        capture(Data(), (torch.randn(2, 3),))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_branch_on_numbers_is_said_to_be_one_and_nothing_else_is_printed(capfd):
    with pytest.raises(CaptureError, match=r"depends on the numbers in a tensor, .* torch\.where instead of a branch"):
        capture(Data(), (torch.randn(2, 3),))
    assert capfd.readouterr() == ("", "")

"""A measure of one's own."""

import numpy as np
import pytest

from graphprune.passes.errors import UsageError
from graphprune.verification.own_metric import OwnMetric


def equal_rows(dense, slim):
    return float((dense["y"] == slim["y"]).all(axis=1).mean())


def test_it_is_the_mean_over_images_and_not_over_batches():
    own = OwnMetric(equal_rows, ["y"])
    own.see([np.zeros((4, 2))], [np.zeros((4, 2))], 4, 4)
    own.see([np.zeros((4, 2))], [np.ones((4, 2))], 1, 4)  # three are padding
    assert own.value == pytest.approx(4 / 5)
    assert OwnMetric(equal_rows, ["y"]).value is None


def test_padding_and_what_all_samples_share_are_told_apart():
    seen = []
    own = OwnMetric(lambda a, b: seen.append({n: v.shape for n, v in a.items()}) or 1.0, ["rows", "shared", "one"])
    arrays = [np.zeros((4, 2)), np.zeros((7, 2)), np.zeros(())]
    own.see(arrays, arrays, 3, 4)
    assert seen == [{"rows": (3, 2), "shared": (7, 2), "one": ()}]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda a, b: a["z"].sum(), "failed on the outputs of 2 images: KeyError: 'z'"),
        (lambda a, b: np.nan, "gave nan"),
        (lambda a, b: None, "failed .* TypeError"),
    ],
)
def test_one_that_fails_is_one_line(metric, said):
    with pytest.raises(UsageError, match=said) as caught:
        OwnMetric(metric, ["y"]).see([np.zeros((2, 1))], [np.zeros((2, 1))], 2, 2)
    assert "\n" not in str(caught.value)

import json

import numpy as np
import pytest

from graphprune.data import Preprocess
from graphprune.errors import UsageError


def test_defaults_follow_the_channels():
    assert Preprocess.of((32, 32)).mean == (0.485, 0.456, 0.406)
    assert Preprocess.of((32, 32)).std == (0.229, 0.224, 0.225)
    gray = Preprocess.of((8, 8), channels=1)
    assert (gray.mean, gray.std) == ((0.5,), (0.5,))
    assert Preprocess.of((8, 8), mean=[0.25]).mean == (0.25, 0.25, 0.25)


def test_uint8_and_float_are_normalized_alike():
    preprocess = Preprocess.of((4, 5))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    expected = ((pixels / 255 - preprocess.mean) / preprocess.std).transpose(0, 3, 1, 2)
    for images in (pixels, (pixels / 255).astype(np.float32)):
        normalized = preprocess(images)
        assert normalized.dtype == np.float32
        assert normalized.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-6)


def test_record_survives_json_and_the_text_names_everything():
    preprocess = Preprocess.of((24, 32), mean=[0.1, 0.2, 0.3], std=[0.5])
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    assert preprocess.input_shape == (3, 24, 32)
    assert str(preprocess) == "RGB 24x32, scaled to 0..1, mean (0.1, 0.2, 0.3), std (0.5, 0.5, 0.5)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, "1 or 3 channels, not 2"),
        ({"mean": [0.5, 0.5]}, "mean has 2 values for 3"),
        ({"channels": 1, "std": [1, 1, 1]}, "std has 3 values for 1"),
        ({"std": [0.5, 0, 0.5]}, "std .* must be above 0"),
        ({"mean": [float("nan")]}, "not finite"),
        ({"image_size": (0, 4)}, "at least 1 pixel"),
    ],
)
def test_impossible_settings_are_usage_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.of(**{"image_size": (8, 8), **arguments})


@pytest.mark.parametrize("record", [{}, {"image_size": 3, "mean": [], "std": [], "channels": 3}])
def test_broken_record_is_one_line(record):
    with pytest.raises(UsageError, match="record of the preprocessing is broken"):
        Preprocess.from_dict(record)

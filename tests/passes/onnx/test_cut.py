import ml_dtypes
import numpy as np
import pytest

from graphprune.passes.onnx.cut import _kept


@pytest.mark.parametrize("kind", ["f4", "f2", "f8", "i1", "?", ml_dtypes.bfloat16, ml_dtypes.int4])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 5, 3, 2), (3, 1, 1)])
@pytest.mark.parametrize("odd", [False, True])
def test_slices_are_kept_whole(shape, kind, odd):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 7, shape).astype(kind)
    array = np.frombuffer(b"x" * odd + numbers.tobytes(), numbers.dtype, offset=odd).reshape(shape)
    for axis, size in enumerate(shape):
        for kept in (rng.random(size) < 0.5, np.ones(size, "?"), np.zeros(size, "?")):
            found = _kept(array, kept, axis)
            assert found.dtype == array.dtype
            assert np.array_equal(found, np.compress(kept, numbers, axis=axis))


def test_so_are_those_of_nothing_and_of_other_layouts():
    assert _kept(np.zeros((0, 4), "f4"), np.array([True, False, True, True]), 1).shape == (0, 3)
    turned = np.arange(12.0).reshape(3, 4).T
    assert np.array_equal(_kept(turned, np.array([True, False, True, True]), 0), turned[[0, 2, 3]])

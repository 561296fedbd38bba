import numpy as np
import pytest

from graphprune.data.arrays import read_array_file, resize_array
from graphprune.errors import DataError


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(tmp_path, array=None, **arrays):
    path = tmp_path / ("images.npz" if array is None else "images.npy")
    if array is None:
        np.savez(path, **arrays)
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_layouts_become_channels_last(tmp_path, dtype):
    last = pixels(5, 7, 6, 3)
    images = last if dtype == np.uint8 else (last / 255).astype(dtype)
    for array in (images, images.transpose(0, 3, 1, 2)):
        held = read_array_file(saved(tmp_path, array), channels=3).images
        assert held.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        assert held.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(held, images.astype(held.dtype))


def test_gray_color_and_alpha_are_converted(tmp_path):
    gray = pixels(4, 8, 8)
    np.testing.assert_array_equal(read_array_file(saved(tmp_path, gray), 1).images, gray[..., None])
    np.testing.assert_array_equal(read_array_file(saved(tmp_path, gray), 3).images, np.stack([gray] * 3, -1))
    color = pixels(4, 8, 8, 3)
    luminance = color @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_array_file(saved(tmp_path, color), 1).images[..., 0], luminance, atol=0.51)
    as_float = read_array_file(saved(tmp_path, color / 255), 1).images[..., 0]
    np.testing.assert_allclose(as_float, luminance / 255, rtol=1e-4)
    alpha = np.zeros((2, 8, 8, 4), np.uint8)
    alpha[0, ..., 3] = 255
    held = read_array_file(saved(tmp_path, alpha), 3).images
    assert held[0].max() == 0
    assert held[1].min() == 255


def test_images_and_labels_are_found_by_name(tmp_path):
    images, labels = pixels(3, 4, 4, 3), np.array([[2], [0], [1]], np.uint8)
    for names in (("images", "labels"), ("x", "y"), ("photos", "y")):
        held = read_array_file(saved(tmp_path, **dict(zip(names, (images, labels), strict=True))), 3)
        np.testing.assert_array_equal(held.images, images)
        np.testing.assert_array_equal(held.labels, [2, 0, 1])
    assert read_array_file(saved(tmp_path, data=images), 3).labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 4), np.uint8)}, r"shape \(3, 4\): images are \(N, H, W, C\)"),
        ({"images": np.zeros((2, 5, 5, 5), np.uint8)}, r"shape \(2, 5, 5, 5\): images are"),
        ({"images": np.zeros((5, 6, 3), np.uint8)}, r"shape \(5, 6, 3\), that of one image"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "there is no image in it"),
        ({"images": np.zeros((2, 4, 4, 3), np.int32)}, "is int32: images are uint8"),
        ({"images": np.full((2, 4, 4, 3), np.nan)}, "not finite"),
        ({"a": np.zeros((2, 4, 4)), "b": np.zeros((2, 4, 4))}, "must be named one of images"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(3, int)}, "y in .* must be 2 integers"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "y": np.zeros(2)}, "y in .* is float64"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "y": np.array([0, -1])}, "labels count from 0"),
        ({"images": np.array([{}], object)}, "holds Python objects"),
    ],
)
def test_wrong_arrays_are_one_line(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        read_array_file(saved(tmp_path, **arrays), 3)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_arrays(tmp_path):
    text = tmp_path / "text.npy"
    text.write_text("hello")
    cut = saved(tmp_path, images=pixels(9, 8, 8, 3))
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(DataError, match="no such file"):
        read_array_file(tmp_path / "absent.npy", 3)
    for path in (text, cut):
        with pytest.raises(DataError, match="cannot be read as arrays"):
            read_array_file(path, 3)


def test_uint8_is_resized_and_floating_point_refused():
    image = np.zeros((1, 8, 16, 3), np.uint8)
    image[:, :, 2:14] = 90
    np.testing.assert_array_equal(resize_array(image, (4, 4), "a"), np.full((1, 4, 4, 3), 90))
    assert resize_array(image[..., :1], (8, 8), "a").shape == (1, 8, 8, 1)
    with pytest.raises(DataError, match="8x16 and floating-point arrays are not resized"):
        resize_array(image.astype(np.float32), (4, 4), "a")

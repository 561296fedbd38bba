import logging
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from graphprune.data import ImageSource, Preprocess, load_images
from graphprune.errors import DataError, UsageError


def color(height: int = 6, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def source(count: int = 20, **options) -> ImageSource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ImageSource(pixels, Preprocess.of((4, 4)), **options)


@pytest.fixture
def folder(tmp_path):
    for index in range(12):
        path = tmp_path / "images" / ("zebra" if index % 3 else "ant") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(color(seed=index)).save(path)
    return tmp_path / "images"


def test_folder_and_zip_of_it_give_the_same(folder, tmp_path, caplog):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*.png")):
            opened.write(path, f"inner/{path.relative_to(folder).as_posix()}")
    with caplog.at_level(logging.INFO, logger="graphprune"):
        loaded = load_images(folder)
    assert "12 images of 6x6x3" in caplog.text
    assert "RGB 6x6" in caplog.text
    assert "labels of 2 classes, to report accuracy only: ant, zebra" in caplog.text
    assert loaded.class_names == ("ant", "zebra")
    np.testing.assert_array_equal(loaded.labels, [0] * 4 + [1] * 8)
    np.testing.assert_array_equal(loaded.pixels[1], color(seed=3))
    for other in (load_images(archive), load_images(f"{archive}::inner")):
        assert other.checksum() == loaded.checksum()
        np.testing.assert_array_equal(other.labels, loaded.labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.zip"]


def test_skipped_image_takes_its_label_along(folder):
    (folder / "ant" / "03.png").write_bytes(b"broken")
    loaded = load_images(folder)
    assert len(loaded) == 11
    assert loaded.skipped == ("ant/03.png",)
    np.testing.assert_array_equal(loaded.labels, [0] * 3 + [1] * 8)


def test_limit_takes_the_same_images_from_all_folders(folder):
    first, second = load_images(folder, limit=6), load_images(folder, limit=6)
    assert len(first) == 6
    assert first.checksum() == second.checksum()
    assert set(first.labels) == {0, 1}
    assert len(load_images(folder, limit=99)) == 12


def test_size_channels_and_normalization_are_those_asked_for(folder):
    loaded = load_images(folder, image_size=5, channels=1, mean=[0.0], std=[1.0])
    assert loaded.preprocess.input_shape == (1, 5, 5)
    batch = loaded.batch(slice(0, 3))
    assert batch.shape == (3, 1, 5, 5)
    np.testing.assert_allclose(batch[:, 0], loaded.pixels[:3, :, :, 0] / 255, rtol=1e-5)
    assert load_images(folder, image_size=(4, 8)).pixels.shape == (12, 4, 8, 3)


def test_npz_with_labels_and_a_limit(tmp_path):
    images = np.stack([color(seed=seed) for seed in range(10)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(10) % 3)
    loaded = load_images(tmp_path / "a.npz", limit=4, image_size=3)
    assert loaded.pixels.shape == (4, 3, 3, 3)
    assert loaded.class_names == ("0", "1", "2")
    whole = load_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(whole.pixels, images)
    np.testing.assert_array_equal(whole.labels, np.arange(10) % 3)


def test_floating_point_out_of_scale_needs_an_explicit_mean_and_std(tmp_path):
    digits = np.random.default_rng(0).random((5, 8, 8)) * 16
    np.save(tmp_path / "digits.npy", digits)
    with pytest.raises(DataError, match=r"run from .* not from 0 to 1: scale them"):
        load_images(tmp_path / "digits.npy", channels=1)
    with pytest.raises(DataError, match="not from 0 to 1"):  # a mean is one of pixels from 0 to 1
        load_images(tmp_path / "digits.npy", channels=1, mean=[0.5], std=[0.5])
    as_given = load_images(tmp_path / "digits.npy", channels=1, mean=[0.0], std=[1.0])
    np.testing.assert_allclose(as_given.batch(slice(None))[:, 0], digits, rtol=1e-6)
    np.save(tmp_path / "scaled.npy", digits / 16)
    scaled = load_images(tmp_path / "scaled.npy", channels=1)
    np.testing.assert_allclose(scaled.batch(slice(None))[:, 0], digits / 8 - 1, atol=1e-6)


def test_wrong_arguments_are_found_before_the_images_are_read(tmp_path):
    for options in ({"limit": 0}, {"mean": [1, 2]}, {"channels": 4}, {"image_size": 0}, {"std": [0.0]}):
        with pytest.raises(UsageError):
            load_images(tmp_path / "absent", **options)
    with pytest.raises(DataError, match="no such folder"):
        load_images(tmp_path / "absent")


def test_batches_cover_everything_in_order():
    images = source(10)
    batches = list(images.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), images.preprocess(images.pixels))
    assert [len(batch) for batch in images.batches(100)] == [10]


def test_a_sample_is_random_deterministic_and_in_random_order():
    images = source(40)
    sample = images.sample(20, seed=3)
    assert len(set(sample.indices)) == 20
    assert sample.indices.tolist() != sorted(sample.indices)
    np.testing.assert_array_equal(images.sample(20, seed=3).indices, sample.indices)
    assert images.sample(20, seed=4).indices.tolist() != sample.indices.tolist()
    assert sorted(images.sample(99, seed=0).indices) == list(range(40))


def test_split_is_random_deterministic_and_without_overlap():
    images = source(20, labels=np.arange(20), class_names=[str(i) for i in range(20)])
    rest, held_out = images.split(0.25, seed=3)
    assert (len(rest), len(held_out)) == (15, 5)
    assert sorted([*rest.indices, *held_out.indices]) == list(range(20))
    assert rest.pixels is images.pixels
    np.testing.assert_array_equal(held_out.labels, held_out.indices)
    np.testing.assert_array_equal(held_out.batch(slice(None)), images.batch(held_out.indices))
    np.testing.assert_array_equal(images.split(0.25, seed=3)[1].indices, held_out.indices)
    assert set(images.split(0.25, seed=4)[1].indices) != set(held_out.indices)
    nested = rest.split(0.2, seed=0)[1]
    assert set(nested.labels) <= set(rest.labels)
    np.testing.assert_array_equal(nested.batch(slice(None)), images.batch(nested.labels))


def test_split_leaves_both_parts_an_image():
    assert [len(part) for part in source(2).split(0.01, seed=0)] == [1, 1]
    assert [len(part) for part in source(5).split(0.99, seed=0)] == [1, 4]
    with pytest.raises(DataError, match="two are needed"):
        source(1).split(0.5, seed=0)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="between 0 and 1"):
            source(4).split(fraction, seed=0)


def test_checksum_sees_pixels_and_order():
    images = source(6)
    assert images.checksum() == source(6).checksum()
    assert images.checksum() != images.subset(np.array([1, 0, 2, 3, 4, 5])).checksum()
    changed = source(6)
    changed.pixels[5, 3, 3, 2] ^= 1
    assert images.checksum() != changed.checksum()


def test_images_that_contradict_the_preprocessing_are_refused():
    with pytest.raises(DataError, match=r"shape \(4, 4, 3\) where \(5, 5, 3\)"):
        ImageSource(source().pixels, Preprocess.of((5, 5)))
    with pytest.raises(DataError, match="3 labels for 20 images"):
        source(labels=np.arange(3))


def test_loading_images_needs_no_torch():
    code = "import sys, graphprune.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

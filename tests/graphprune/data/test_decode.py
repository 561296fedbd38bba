import io

import numpy as np
import pytest
from PIL import Image

from graphprune.data.decode import decode_files, decode_image, resize_and_crop
from graphprune.data.files import FileSet
from graphprune.errors import DataError


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def color(height: int = 6, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files_of(contents: dict[str, bytes]) -> FileSet:
    return FileSet("pictures", tuple(contents), contents.__getitem__)


def test_color_is_kept_and_gray_is_luminance():
    pixels = color()
    data = encode(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_image(data, 3, None), pixels)
    gray = decode_image(data, 1, None)
    assert gray.shape == (6, 4, 1)
    np.testing.assert_allclose(gray[..., 0], pixels @ [0.299, 0.587, 0.114], atol=0.51)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGBA", "LA"])
def test_every_mode_of_a_white_image_is_white(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encode(Image.new("RGB", (5, 3), "white").convert(mode), kind)
    for channels in (1, 3):
        np.testing.assert_array_equal(decode_image(data, channels, None), np.full((3, 5, channels), 255))


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    np.testing.assert_array_equal(decode_image(encode(image), 3, None), [[[255, 0, 0], [255, 255, 255]]])
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = palette.getpixel((1, 0))
    np.testing.assert_array_equal(decode_image(encode(palette), 3, None)[0, 1], [255, 255, 255])


def test_16_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(values)), 3, None)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 0x80, 255])


def test_other_sizes_are_scaled_to_cover_and_cropped_at_the_center():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(wide)), 3, (10, 10)), np.full((10, 10, 3), 200))
    tall = Image.fromarray(wide.transpose(1, 0, 2))
    assert resize_and_crop(tall, (5, 5)).size == (5, 5)
    assert np.asarray(resize_and_crop(tall, (5, 5)))[2, 2, 0] == 200
    for shape in ((3, 1000), (1, 1), (7, 8), (224, 223)):
        assert decode_image(encode(Image.fromarray(color(*shape))), 3, (9, 7)).shape == (9, 7, 3)


@pytest.mark.parametrize("side", [8, 160])  # the larger ones are decoded by threads
def test_files_come_in_order_and_corrupt_ones_are_named_skipped_and_counted(side, caplog):
    originals = [color(side, side, seed) for seed in range(24)]
    contents = {f"{index:02}.png": encode(Image.fromarray(pixels)) for index, pixels in enumerate(originals)}
    contents["00.png"] = b"no image"
    contents["13.png"] = contents["13.png"][:60]
    calls = []
    decoded = decode_files(files_of(contents), list(contents), 3, None, lambda done, count: calls.append((done, count)))
    assert decoded.skipped == ("00.png", "13.png")
    kept = [index for index in range(24) if index not in (0, 13)]
    np.testing.assert_array_equal(decoded.kept, kept)
    np.testing.assert_array_equal(decoded.images, np.stack([originals[index] for index in kept]))
    assert "00.png: not an image that Pillow knows" in caplog.text
    assert "13.png" in caplog.text
    assert "2 of 24 images in pictures are unreadable and were skipped" in caplog.text
    assert calls == [(24, 24)]


def test_more_than_a_tenth_unreadable_is_an_error():
    good = encode(Image.fromarray(color()))
    contents = {f"{index}.png": good for index in range(9)}
    contents |= {"x.png": b"", "y.png": b"\x89PNG\r\n\x1a\n broken"}
    with pytest.raises(DataError, match=r"2 of 11 images in pictures are unreadable, .* the first is x\.png"):
        decode_files(files_of(contents), list(contents), 3, None)
    with pytest.raises(DataError, match="1 of 1 images"):
        decode_files(files_of({"x.jpg": b"no"}), ["x.jpg"], 3, None)


def test_different_sizes_without_a_size_are_an_error_that_names_two():
    contents = {"a.png": encode(Image.fromarray(color(4, 4))), "b.png": encode(Image.fromarray(color(4, 5)))}
    with pytest.raises(DataError, match=r"a\.png is 4x4, b\.png is 4x5.*`image_size`"):
        decode_files(files_of(contents), list(contents), 3, None)
    assert decode_files(files_of(contents), list(contents), 3, (4, 4)).images.shape == (2, 4, 4, 3)


def test_what_would_not_fit_into_memory_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else 1)
    contents = {f"{index}.png": encode(Image.fromarray(color(8, 8))) for index in range(9)}
    with pytest.raises(DataError, match="limit them to 4 or fewer"):
        decode_files(files_of(contents), list(contents), 3, None)

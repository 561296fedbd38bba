import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from graphprune.data import ImageSource, Preprocess
from graphprune.inputs import DataOptions, capture_on, expected_images, image_sizes, read_images
from graphprune.passes.errors import CaptureError, DataError, UnsupportedModelError


class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def source(size=8, channels=3, number=5):
    pixels = np.random.default_rng(0).integers(0, 256, (number, size, size, channels)).astype(np.uint8)
    return ImageSource(pixels, Preprocess.of((size, size), channels))


def program(size=8, channels=3, batch=2, free=True):
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    return torch.export.export(Net(channels).eval(), (torch.zeros(batch, channels, size, size),), dynamic_shapes=shapes)


def write(folder, sizes, mode="RGB"):
    folder.mkdir()
    for at, size in enumerate(sizes):
        Image.new(mode, (size, size)).save(folder / f"{at}.png")
    return folder


def test_what_a_model_takes_is_read_from_it():
    assert expected_images(Net(1)) == (1, None)
    assert expected_images(program(16, 3)) == (3, (16, 16))
    assert expected_images(nn.Linear(3, 4)) == (None, None)


def test_the_order_in_which_layers_were_made_does_not_matter():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Conv2d(8, 4, 1), nn.Conv2d(1, 8, 3)

    assert expected_images(HeadFirst()) == (1, None)


def test_what_a_module_calls_its_graph_is_its_own_affair():
    model = Net()
    model.graph = "a skeleton"
    assert expected_images(model) == (3, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_precision_is_refused_as_such(dtype):
    model = Net().to(dtype).eval()
    exported = torch.export.export(model, (torch.zeros(2, 3, 8, 8, dtype=dtype),))
    for given in (model, exported):
        with pytest.raises(UnsupportedModelError, match=rf"computes in {str(dtype)[6:]} \(conv.weight\).*model.float"):
            capture_on(given, source())


def test_a_gray_model_gets_gray_images(tmp_path):
    images = read_images(write(tmp_path / "images", [8, 8]), DataOptions(), Net(1))
    assert images.preprocess.input_shape == (1, 8, 8)
    assert read_images(tmp_path / "images", DataOptions(channels=3), Net(1)).preprocess.channels == 3


def test_a_captured_size_is_what_images_are_brought_to(tmp_path):
    images = read_images(write(tmp_path / "images", [20, 9, 8]), DataOptions(), program(8))
    assert images.preprocess.input_shape == (3, 8, 8)


def test_many_channels_are_no_image(tmp_path):
    with pytest.raises(DataError, match="images of 5 channels"):
        read_images(write(tmp_path / "images", [8]), DataOptions(), Net(5))


def test_an_array_is_taken_as_it_is():
    array = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    for given in (array, torch.from_numpy(array)):
        np.testing.assert_array_equal(read_images(given, DataOptions()).batch(slice(None)), array)
    learned = torch.from_numpy(array).requires_grad_()
    np.testing.assert_array_equal(read_images(learned, DataOptions()).batch(slice(None)), array)
    for bad, problem in ((array[:0], "is empty"), (np.full_like(array, np.nan), "not finite")):
        with pytest.raises(DataError, match=problem):
            read_images(bad, DataOptions())
    for bad in (array.transpose(0, 2, 3, 1), array[0], (array * 100).astype(np.uint8)):
        with pytest.raises(DataError, match="floating point of shape"):
            read_images(bad, DataOptions())


def test_a_capture_takes_any_batch_and_the_module_is_not_touched():
    model = Net().train()
    captured = capture_on(model, source())
    assert model.training
    for batch in (1, 3, 64):
        assert captured(torch.zeros(batch, 3, 8, 8)).shape == (batch, 4)


@pytest.mark.parametrize(("model", "shown"), [(Net(1), "3x8x8"), (program(16), "3x16x16"), (program(8, 1), "1x8x8")])
def test_images_that_do_not_fit_are_a_data_error(model, shown):
    with pytest.raises(DataError, match=shown) as caught:
        capture_on(model, source())
    assert "\n" not in str(caught.value)
    assert "`image_size`" in str(caught.value)


def test_example_inputs_of_another_size_are_refused():
    with pytest.raises(DataError, match="3x4x4"):
        capture_on(Net(), source(), (torch.zeros(1, 3, 4, 4),))
    with pytest.raises(UnsupportedModelError, match="single input"):
        capture_on(Net(), source(), (torch.zeros(1, 3, 8, 8), torch.zeros(1)))
    assert capture_on(Net(), source(), (torch.zeros(1, 3, 8, 8),))(torch.zeros(5, 3, 8, 8)).shape == (5, 4)


class Fixed(Net):
    """Writes its batch size into the graph."""

    def forward(self, x):
        return super().forward(x).reshape(2, 2, -1).flatten(1)


class Beside(Net):
    """Also gives its steps with the batch second, or something that is the same for all images."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        y = super().forward(x)
        return y, (y[None] if self.what == "steps" else torch.arange(4.0) if self.what == "anchors" else y.sum(1))


@pytest.mark.parametrize(("what", "problem"), [("steps", "the batch along dimension 1"), ("anchors", "not depend on")])
def test_outputs_without_the_batch_first_are_named(what, problem):
    with pytest.raises(UnsupportedModelError, match=rf"output 1 of the model \(.*{problem}.*batch first"):
        capture_on(Beside(what), source())
    assert len(capture_on(Beside("sum"), source())(torch.zeros(3, 3, 8, 8))) == 2


def test_a_model_for_one_batch_size_is_refused_with_the_way_out():
    with pytest.raises(CaptureError, match="with a free batch"):
        capture_on(Fixed(), source())
    fixed = torch.export.export(Fixed().eval(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(CaptureError, match="with a free batch"):
        capture_on(fixed, source())


def test_a_program_exported_for_one_batch_that_works_for_all_is_taken():
    captured = capture_on(program(free=False), source())
    assert captured(torch.zeros(7, 3, 8, 8)).shape == (7, 4)


def test_an_input_that_is_no_image_is_shown_with_its_free_sizes():
    free = ({0: torch.export.Dim("batch")},)
    flat = torch.export.export(nn.Conv1d(3, 4, 3), (torch.zeros(2, 3, 9),), dynamic_shapes=free)
    with pytest.raises(UnsupportedModelError, match=r"the model takes \?x3x9;"):
        expected_images(flat)


@pytest.mark.parametrize(
    ("dims", "found"),
    [
        ((None, 3, 8, 9), (3, 8, 9)),
        (("n", 1, "h", "w"), (1, None, None)),
        ((4, 3, 3, 3), (3, 3, 3)),
        ((1, 8, 8, 8), (8, 8, 8)),
        ((None, 8, 8, 3), None),
        (("n", None, None, 1), None),
    ],
)
def test_channels_stand_in_front(dims, found):
    if found is not None:
        assert image_sizes(dims) == found
        return
    with pytest.raises(UnsupportedModelError, match="channels last") as caught:
        image_sizes(dims)
    assert "\n" not in str(caught.value)


def test_several_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    two = torch.export.export(Two(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)))
    with pytest.raises(UnsupportedModelError, match="single input of images"):
        expected_images(two)
    with pytest.raises(DataError, match="missing 1 required positional"):
        capture_on(Two(), source())

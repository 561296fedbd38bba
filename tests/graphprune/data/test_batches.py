import numpy as np
import pytest
import torch

from graphprune.data import ImageSource, Preprocess
from graphprune.data.batches import NO_AUGMENTATION, Augmentation, TrainingBatches, augment, evaluation_batches
from graphprune.errors import DataError, UsageError

IDENTITY = Preprocess.of((16, 16), mean=[0.0], std=[1.0])


def source(count: int = 20, seed: int = 0) -> ImageSource:
    pixels = np.random.default_rng(seed).integers(1, 256, (count, 16, 16, 3), dtype=np.uint8)
    return ImageSource(pixels, IDENTITY)


def numbered(count: int) -> ImageSource:
    """Images whose every pixel is their number."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ImageSource(np.broadcast_to(pixels, (count, 16, 16, 3)).copy(), IDENTITY)


def numbers(batch: torch.Tensor) -> list[int]:
    return (batch[:, 0, 0, 0] * 255).round().int().tolist()


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    batches = TrainingBatches(numbered(24), 6, seed=1, augmentation=NO_AUGMENTATION)
    assert batches.steps_per_epoch == 4
    first, second = (
        [number for step in range(4) for number in numbers(batches.batch(epoch, step))] for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_remainder_is_left_out_and_few_images_are_one_batch():
    batches = TrainingBatches(numbered(10), 4, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (4, 2)
    few = TrainingBatches(numbered(3), 64, seed=0)
    assert (few.batch_size, few.steps_per_epoch) == (3, 1)
    assert sorted(numbers(few.batch(0, 0))) == [0, 1, 2]


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    batches = TrainingBatches(source(), 5, seed=7)
    stream = [batches.batch(*divmod(position, 4)) for position in range(11)]
    other = TrainingBatches(source(), 5, seed=7)
    for position in (10, 0, 3, 7):
        assert torch.equal(other.batch(position // 4, position % 4), stream[position])
    assert not torch.equal(TrainingBatches(source(), 5, seed=8).batch(0, 0), stream[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: TrainingBatches(source(seed=1), 5, seed=7), "checksum was"),
        (lambda: TrainingBatches(source(21), 5, seed=7), "images was 20 and is 21"),
        (lambda: TrainingBatches(source(), 4, seed=7), "batch_size was 5 and is 4"),
        (lambda: TrainingBatches(source(), 5, seed=8), "seed was 7 and is 8"),
        (lambda: TrainingBatches(source(), 5, seed=7, augmentation=NO_AUGMENTATION), "augmentation was"),
    ],
)
def test_batches_of_something_else_are_refused(other, message):
    origin = TrainingBatches(source(), 5, seed=7).origin()
    TrainingBatches(source(), 5, seed=7).refuse_other({"epoch": 0, "step": 0, **origin})  # of an earlier version
    with pytest.raises(DataError, match=message):
        other().refuse_other(origin)


def expected_crops(image: np.ndarray, padding: str, *, flip: bool) -> set[bytes]:
    """All results that a crop by up to 2 pixels may have, computed with np.pad."""
    mode = {"reflect": {"mode": "reflect"}, "zero": {"mode": "constant"}}[padding]
    crops = set()
    for flipped in (image, image[:, ::-1]) if flip else (image,):
        padded = np.pad(flipped, ((2, 2), (2, 2), (0, 0)), **mode)
        crops |= {padded[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    return crops


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [True, False])
def test_crops_and_flips_are_those_of_the_padded_image(padding, flip):
    images = source(3)
    chosen = torch.tensor([2, 0] * 300)
    changed = augment(
        torch.from_numpy(images.pixels), chosen, Augmentation(flip=flip, padding=padding), np.random.default_rng(0)
    )
    for index in (0, 2):
        seen = {image.numpy().tobytes() for image in changed[chosen == index]}
        # 300 draws of 25 or 50 results: every one is seen, and nothing else.
        assert seen == expected_crops(images.pixels[index], padding, flip=flip)


def test_flip_alone_mirrors_half_and_no_augmentation_changes_nothing():
    images = source(1)
    chosen = torch.zeros(400, dtype=torch.int64)
    pixels = torch.from_numpy(images.pixels)
    flipped = augment(pixels, chosen, Augmentation(crop=False), np.random.default_rng(0))
    mirrored = sum(torch.equal(image, pixels[0].flip(1)) for image in flipped)
    assert 150 < mirrored < 250
    assert mirrored + sum(torch.equal(image, pixels[0]) for image in flipped) == 400
    assert torch.equal(
        augment(pixels, chosen[:5], NO_AUGMENTATION, np.random.default_rng(0)), pixels.repeat(5, 1, 1, 1)
    )


def test_subset_trains_on_its_own_images_only():
    part = numbered(20).subset(np.array([3, 5, 8, 13]))
    assert sorted(numbers(TrainingBatches(part, 4, seed=0).batch(0, 0))) == [3, 5, 8, 13]


def test_evaluation_is_in_order_and_complete():
    batches = list(evaluation_batches(numbered(10), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert numbers(torch.cat(batches)) == list(range(10))


def test_floating_point_images_are_augmented_too():
    pixels = np.random.default_rng(0).random((4, 16, 16, 3), dtype=np.float32)
    shifted = Augmentation(padding="zero")
    batch = TrainingBatches(ImageSource(pixels, IDENTITY), 4, seed=0, augmentation=shifted).batch(0, 0)
    assert batch.dtype == torch.float32
    assert 0 <= batch.min() <= batch.max() < 1


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match="batch size is 0"):
        TrainingBatches(source(), 0, seed=0)
    with pytest.raises(UsageError, match="seed is -1"):
        TrainingBatches(source(), 4, seed=-1)
    with pytest.raises(UsageError, match="padding is 'wrap'"):
        Augmentation(padding="wrap")
    with pytest.raises(DataError, match="there is no image"):
        TrainingBatches(source().subset(np.array([], np.int64)), 4, seed=0)


def test_blended_images_are_made_of_two_of_the_batch():
    plain = TrainingBatches(source(), 10, seed=3, augmentation=NO_AUGMENTATION).batch(0, 0)
    mixed = TrainingBatches(source(), 10, seed=3, augmentation=Augmentation(False, False, mix=0.6)).batch(0, 0)
    flat, found = plain.flatten(1).double(), mixed.flatten(1).double()
    shares = torch.linalg.lstsq(flat.T, found.T).solution.T  # of each image of the batch, in each blended one
    torch.testing.assert_close(shares.sum(1), torch.ones(10, dtype=torch.float64), atol=1e-5, rtol=0)
    assert ((shares.abs() > 1e-4).sum(1) <= 2).all()
    assert 0 < (shares.diagonal() < 0.999).sum() < 10
    assert (shares > -1e-5).all()


def test_blending_is_drawn_from_the_seed_alone():
    augmentation = Augmentation(mix=0.5)
    first = TrainingBatches(source(), 8, seed=1, augmentation=augmentation).batch(1, 1)
    again = TrainingBatches(source(), 8, seed=1, augmentation=augmentation)
    again.batch(0, 0)
    assert torch.equal(again.batch(1, 1), first)
    with pytest.raises(UsageError, match="mix is 2"):
        Augmentation(mix=2)

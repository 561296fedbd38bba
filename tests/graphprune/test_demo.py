import shlex

import numpy as np
import pytest
import torch

from graphprune import demo
from graphprune.data import load_images
from graphprune.passes.errors import OutputExistsError


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


def test_the_digits_are_real_and_parted(digits):
    assert (len(digits.train), len(digits.val)) == (1437, 360)
    assert digits.train.shape[1:] == (16, 16)
    assert digits.train.dtype == np.uint8
    assert digits.train.max() > 240
    assert set(digits.val_labels) == set(range(10))
    seen = {image.tobytes() for image in digits.train}
    assert sum(image.tobytes() in seen for image in digits.val) < 5


def test_only_the_images_to_judge_by_have_labels(digits, tmp_path):
    few = demo.Digits(digits.train[:30], digits.train_labels[:30], digits.val[:40], digits.val_labels[:40])
    train, val = demo.write_folders(few, tmp_path)
    learned, judged = load_images(train, channels=1), load_images(val, channels=1)
    assert learned.labels is None
    assert len(learned) == 30
    np.testing.assert_array_equal(learned.pixels[..., 0], digits.train[:30])
    assert judged.class_names == tuple("0123456789")
    assert sorted(judged.labels) == sorted(digits.val_labels[:40])


def test_the_given_model_learns(digits):
    torch.set_num_threads(1)
    seen = []
    model = demo.train(digits, epochs=3, progress=lambda done, total: seen.append((done, total)), width=8)
    assert seen[-1] == (66, 66)
    images = torch.from_numpy((digits.val[:, None].astype(np.float32) / 255 - 0.5) / 0.5)
    with torch.no_grad():
        right = (model(images).argmax(1).numpy() == digits.val_labels).mean()
    assert right > 0.8
    assert not model.training


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="`force=True`"):
        demo.demonstrate(tmp_path)
    with pytest.raises(OutputExistsError, match="`force=True`"):
        demo.demonstrate(tmp_path / "mine.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_that_it_tells_is_one(tmp_path):
    from graphprune.cli.compress import command
    from graphprune.cli.main import group

    program, name, *arguments = shlex.split(demo.command_line(tmp_path))
    assert (program, name) == ("graphprune", "compress")
    # Below its group, whose settings a command takes over: it keeps its help option from its first context on.
    parsed = command.make_context(name, arguments, parent=group.make_context(program, ["compress"])).params
    assert parsed["model"] == tmp_path / "digits.pt2"
    assert parsed["macs"] == demo.MACS
    assert parsed["flip"] is False

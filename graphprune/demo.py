"""The demonstration: a small network on real handwritten digits, trained with labels and compressed without.

The digits are those that scikit-learn brings along (UCI ML hand-written digits, 1797 images of 8x8), enlarged to
16x16. They are written as files and the trained network is saved, so that the compression starts from what a user
would have: a model file and a folder of images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from graphprune.compress import CompressResult, Reporter, compress
from graphprune.config import CompressConfig
from graphprune.data import Preprocess
from graphprune.formats.saving import save
from graphprune.passes.errors import GraphPruneError, OutputExistsError
from graphprune.runtime.machine import machine_facts

__all__ = ["DigitNet", "Digits", "command_line", "demonstrate", "load_digits", "train", "write_folders"]

SIDE = 16
MACS = 0.35
EPOCHS_OF_TRAINING = 6
EPOCHS_OF_COMPRESSION = 10
BATCH = 64
# So small a network gains little from more, and loses much when the other cores are busy.
THREADS = 1
MODEL, IMAGES, JUDGE_BY, RESULTS = "digits.pt2", "digits/train", "digits/val", "compressed"

_PREPROCESS = Preprocess.of((SIDE, SIDE), channels=1)


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for digits: two stages of two blocks, 32 and 64 channels wide."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        self.layer2 = nn.Sequential(_Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1))
        self.linear = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shapes: x: (batch, 1, 16, 16); returns (batch, 10)."""
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


@dataclass(frozen=True)
class Digits:
    """Pixels (N, 16, 16), uint8, and labels (N,), in two parts."""

    train: np.ndarray
    train_labels: np.ndarray
    val: np.ndarray
    val_labels: np.ndarray


def load_digits() -> Digits:
    """Return the digits: 1437 to train with, 360 to judge by.

    Raises:
        GraphPruneError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise GraphPruneError(
            "the demo takes its digits from scikit-learn: pip install 'graphprune[demo]', or pip install scikit-learn"
        ) from error
    held = datasets.load_digits()
    pixels = np.stack([_enlarge(image) for image in held.images])
    order = np.random.default_rng(0).permutation(len(pixels))
    first = order[: len(order) * 4 // 5]
    rest = order[len(first) :]
    return Digits(pixels[first], held.target[first], pixels[rest], held.target[rest])


def write_folders(digits: Digits, folder: Path) -> tuple[Path, Path]:
    """Write the digits as PNG files: those to learn from without labels, those to judge by in folders by class."""
    learn_from, judge_by = folder / "train", folder / "val"
    for index, image in enumerate(digits.train):
        _write(image, learn_from / f"{index:04d}.png")
    for index, (image, label) in enumerate(zip(digits.val, digits.val_labels, strict=True)):
        _write(image, judge_by / str(label) / f"{index:04d}.png")
    return learn_from, judge_by


def train(
    digits: Digits, epochs: int, progress: Callable[[int, int], None] | None = None, *, width: int = 32
) -> DigitNet:
    """Train a network with labels, the ordinary way: this is the model that a user comes with."""
    torch.manual_seed(0)
    model = DigitNet(width).train()
    steps = len(digits.train) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    images = torch.from_numpy(_PREPROCESS(digits.train[..., None]))
    labels = torch.from_numpy(digits.train_labels.astype(np.int64))
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + step + 1, epochs * steps)
    return model.eval()


def demonstrate(
    folder: Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
    training_epochs: int = EPOCHS_OF_TRAINING,
    epochs: float = EPOCHS_OF_COMPRESSION,
) -> CompressResult:
    """Make digits and a trained network as files, and compress the network without labels.

    Args:
        folder: where everything is written.
        force: replace an earlier demonstration.
        reporter: told how it goes.
        training_epochs: length of the training with labels.
        epochs: length of the compression.

    Raises:
        OutputExistsError: the folder holds something, and `force` is false.
    """
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            f"{folder} exists already; choose another one as `output`, or replace it with `force=True`"
        )
    digits = load_digits()
    write_folders(digits, folder / "digits")
    if reporter is not None:
        reporter.stage("training the network with labels")
    torch.set_num_threads(THREADS)
    model = train(digits, training_epochs, None if reporter is None else reporter.images)
    example = torch.from_numpy(_PREPROCESS(digits.train[:2, ..., None]))
    save(model, folder / MODEL, (example,), force=True)
    config = CompressConfig(
        macs=MACS, epochs=epochs, batch_size=BATCH, flip=False, align=machine_facts().conv_block, threads=THREADS
    )
    return compress(
        folder / MODEL,
        folder / IMAGES,
        output=folder / RESULTS,
        config=config,
        eval_images=folder / JUDGE_BY,
        force=force,
        reporter=reporter,
        record={"model": MODEL},
    )


def command_line(folder: Path) -> str:
    """The command that does what `demonstrate` did."""
    return (
        f"graphprune compress {folder / MODEL} --data {folder / IMAGES} --eval-data {folder / JUDGE_BY} "
        f"--macs {MACS:g} --align {machine_facts().conv_block} --epochs {EPOCHS_OF_COMPRESSION} --no-flip "
        f"--threads {THREADS} -o {folder / RESULTS} --force"
    )


def _enlarge(image: np.ndarray) -> np.ndarray:
    """8x8 values in 0..16 as 16x16 pixels in 0..255."""
    small = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _write(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)

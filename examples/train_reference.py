"""Train a dense reference network on images with labels: what a compression starts from.

    python examples/train_reference.py --arch graphprune.models:mobilenet_v2 --data cifar10-jpeg.zip::train \
        --eval-data cifar10-jpeg.zip::val --epochs 30 --threads 1 -o mobilenetv2.safetensors

Images are a folder or a zip with one sub-folder a class. After every epoch the state of the training is saved beside
the output; the same command goes on with it. The accuracy on --eval-data is measured once, at the end: nothing is
decided by it. SGD with Nesterov momentum, a linear warm-up and a cosine; crops and flips. With --sizes the images are
small at first and grow, which makes the early epochs cheaper (progressive learning: Tan and Le 2021, "EfficientNetV2",
section 4). --start takes over from a file whatever fits by name and shape; with --freeze that part stays as it is:

    python examples/train_reference.py --arch graphprune.models:vgg16_bn_linear --start vgg_small.safetensors \
        --freeze "features.*" --data cifar10-jpeg.zip::train --epochs 3 -o vgg16_bn_linear.safetensors

What a compression decides on images that its teacher learned from says little about others: the teacher is surer there.
--leave-out keeps some from both; they are those that `split` of the source draws with the same seed and share.
"""

import argparse
import math
import time
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

import graphprune as gp
from graphprune.data.batches import TrainingBatches, evaluation_batches
from graphprune.formats.architecture import resolve_arch
from graphprune.formats.files import atomic_write_json, atomic_write_through_memory
from graphprune.formats.loading import load_weights
from graphprune.passes.errors import DataError, GraphPruneError, ModelLoadError, OutputExistsError, UsageError
from graphprune.runtime.memory import freed_memory_kept


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, help="what builds the network, as in graphprune.models:resnet20")
    parser.add_argument("--start", type=Path, help="weights to start from (.safetensors, .pt), as far as they fit")
    parser.add_argument("--freeze", nargs="+", default=[], metavar="PATTERN", help="parameters that stay as they are")
    parser.add_argument("--data", required=True, help="images in folders by class, or a zip of them")
    parser.add_argument("--eval-data", help="more of them, for the accuracy at the end")
    parser.add_argument("--image-size", type=int, help="side that images are brought to; default: their own")
    parser.add_argument("--sizes", help="sides of the images in equal parts of the training, as in 16,24,32")
    parser.add_argument("--limit", type=int, help="learn from so many images only")
    parser.add_argument(
        "--leave-out", type=int, default=0, metavar="N", help="images not to learn from, drawn by --seed"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; default: all cores")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--force", action="store_true", help="replace the output and start afresh")
    return parser.parse_args()


class Training:
    """A run of so many epochs that can be stopped and gone on with."""

    def __init__(self, arguments: argparse.Namespace, model: nn.Module, source: gp.ImageSource) -> None:
        self.arguments = arguments
        self.model = model.to(memory_format=torch.channels_last)
        self.batches = TrainingBatches(source, arguments.batch_size, seed=arguments.seed)
        # Labels by position among the stored pixels, which is what a batch says it is made of.
        self.labels = torch.full((len(source.pixels),), -1)
        self.labels[torch.from_numpy(source.indices)] = torch.from_numpy(source.labels)
        self.frozen = freeze(model, arguments.freeze)
        learning = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in learning if p.ndim > 1]
        other = [p for p in learning if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=arguments.lr, momentum=0.9, nesterov=True)
        self.sizes = sides(arguments.sizes, source.preprocess.input_shape[-1])
        if len(self.sizes) > arguments.epochs:
            raise UsageError(f"--sizes {arguments.sizes} are more than the {arguments.epochs} epochs that they divide")
        self.path = arguments.output.with_suffix(".checkpoint.pt")
        self.settings = {k: str(v) for k, v in vars(arguments).items() if k not in ("force", "threads", "output")}
        self.epoch = 0

    def resume(self) -> None:
        """Go on with what an earlier call has saved, if it was of the same settings."""
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        if state["settings"] != self.settings:
            raise OutputExistsError(f"{self.path}: a training with other settings; remove it, or start with --force")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        print(f"going on after epoch {self.epoch}")

    def run(self) -> None:
        """Train to the end."""
        total = self.arguments.epochs * self.batches.steps_per_epoch
        while self.epoch < self.arguments.epochs:
            started, losses, right = time.monotonic(), [], 0
            self.model.train()
            for part in self.frozen:
                part.eval()
            for step in range(self.batches.steps_per_epoch):
                self._set_rate(self.epoch * self.batches.steps_per_epoch + step, total)
                images = self._sized(self.batches.batch(self.epoch, step))
                labels = self.labels[torch.from_numpy(self.batches.chosen(self.epoch, step))]
                self.optimizer.zero_grad(set_to_none=True)
                logits = self.model(images)
                loss = cross_entropy(logits, labels, label_smoothing=self.arguments.label_smoothing)
                torch.autograd.backward(loss)
                self.optimizer.step()
                losses.append(float(loss.detach()))
                right += int((logits.argmax(1) == labels).sum())
                if not math.isfinite(losses[-1]):
                    raise GraphPruneError(f"the loss is {losses[-1]} in epoch {self.epoch + 1}: lower --lr")
            self.epoch += 1
            self._save()
            share = right / (self.batches.steps_per_epoch * self.batches.batch_size)
            seconds = time.monotonic() - started
            print(f"epoch {self.epoch}: loss {np.mean(losses):.4f}, right on {share:.2%}, {seconds:.0f} s", flush=True)

    def _sized(self, images: torch.Tensor) -> torch.Tensor:
        size = self.sizes[self.epoch * len(self.sizes) // self.arguments.epochs]
        if size != images.shape[-1]:
            images = interpolate(images, (size, size), mode="bilinear", antialias=True)
        return images.contiguous(memory_format=torch.channels_last)

    def _set_rate(self, step: int, total: int) -> None:
        warmup = max(1, total // 20)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, total - warmup))))
        for group in self.optimizer.param_groups:
            group["lr"] = self.arguments.lr * min(1.0, (step + 1) / warmup) * cosine

    def _save(self) -> None:
        state = {"epoch": self.epoch, "settings": self.settings, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        atomic_write_through_memory(self.path, lambda file: torch.save(state, file))


def sides(text: str | None, last: int) -> list[int]:
    """The sides of `--sizes`, or an error; without it the images' own."""
    if text is None:
        return [last]
    if not all(part.isdigit() for part in text.split(",")) or int(text.split(",")[-1]) != last:
        raise DataError(f"--sizes {text}: give whole numbers that end with {last}, the side of the images")
    return [int(part) for part in text.split(",")]


def freeze(model: nn.Module, patterns: list[str]) -> list[nn.Module]:
    """Let parameters stay as they are; returns the modules in which nothing is left to learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("--freeze leaves nothing to learn")
    owners = [part for part in model.modules() if any(True for _ in part.parameters(recurse=False))]
    return [part for part in owners if not any(p.requires_grad for p in part.parameters(recurse=False))]


def take_over(model: nn.Module, path: Path) -> None:
    """Fill in what a file has under the same name and in the same shape."""
    state, own = load_weights(path), model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ModelLoadError(f"{path}: none of its {len(state)} tensors fits the network")
    model.load_state_dict(fitting, strict=False)
    print(f"{len(fitting)} of {len(own)} tensors taken over from {path}")


@torch.no_grad()
def accuracy(model: nn.Module, source: gp.ImageSource) -> float:
    """Share of the images that the model puts into their class."""
    model.eval()
    answers = [model(batch).argmax(1) for batch in evaluation_batches(source, 250)]
    return float((torch.cat(answers).numpy() == source.labels).mean())


def labelled(path: str, image_size: int | tuple[int, int] | None, limit: int | None = None) -> gp.ImageSource:
    """Images with labels, or an error."""
    source = gp.load_images(path, image_size=image_size, limit=limit)
    if source.labels is None:
        raise DataError(f"{path}: the images have no labels; put those of each class into a folder of its own")
    return source


def without(source: gp.ImageSource, number: int, seed: int) -> gp.ImageSource:
    """All but so many images, or an error."""
    if not 0 < number < len(source):
        raise UsageError(f"--leave-out {number}: give a number between 0 and {len(source)}, that of the images")
    return source.split(number / len(source), seed)[0]


def judges(path: str, source: gp.ImageSource) -> gp.ImageSource:
    """Images for the accuracy, of the size and the classes of those learned from, or an error."""
    found = labelled(path, source.preprocess.image_size)
    if list(found.class_names) != list(source.class_names):
        other = sorted(set(found.class_names) ^ set(source.class_names))
        what = f"{other[0]} is only in one of them" if other else "they come in another order"
        raise DataError(f"{path}: its classes are not those of {source.name}: {what}")
    return found


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers; what several modules share is there once."""
    first: dict[tuple[int, torch.Size], str] = {}
    state = model.state_dict()
    for name, value in state.items():
        first.setdefault((value.data_ptr(), value.shape), name)
    return {name: state[name].clone(memory_format=torch.contiguous_format) for name in first.values()}


def main() -> None:
    """Train, measure, write."""
    arguments = parse()
    if arguments.output.exists() and not arguments.force:
        raise OutputExistsError(f"{arguments.output}: exists already; choose another name, or replace it with --force")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    source = labelled(arguments.data, arguments.image_size, arguments.limit)
    judged_on = judges(arguments.eval_data, source) if arguments.eval_data else None
    if arguments.leave_out:
        source = without(source, arguments.leave_out, arguments.seed)
    model = resolve_arch(arguments.arch)
    if arguments.start is not None:
        take_over(model, arguments.start)
    training = Training(arguments, model, source)
    if arguments.force:
        training.path.unlink(missing_ok=True)
    training.resume()
    with freed_memory_kept():
        training.run()
    atomic_write_through_memory(arguments.output, lambda file: file.write(save(weights(model))))
    result = {"arch": arguments.arch, "epochs": arguments.epochs, "images": len(source), "classes": source.class_names}
    if judged_on is not None:
        result["accuracy"] = accuracy(model, judged_on)
        print(f"right on {result['accuracy']:.2%} of {arguments.eval_data}")
    atomic_write_json(arguments.output.with_suffix(".json"), {**result, "settings": training.settings})
    training.path.unlink()
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except GraphPruneError as error:
        raise SystemExit(f"error: {error}") from None

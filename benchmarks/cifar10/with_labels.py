"""torch-pruning with sparse training and fine-tuning on labels, beside the label-free runs of `run.py`.

    python benchmarks/cifar10/with_labels.py resnet56 --pruner group-norm --macs 0.4 --epochs 8 --lr 0.02 \
        --data cifar10-jpeg.zip --models MODELS

Needs torch-pruning. The same images, batches, augmentation, optimizer, course of the learning rate and number of epochs
as ours, and labels on top: a share of the epochs trains with regularization, then channels are removed step
by step until the multiply-accumulates are at most those asked for, and the rest of the epochs fine-tunes. They are
counted in the ONNX file at the end. Judged on `val/` once, at the end. Rows go to results/with-labels.json and are not
repeated; a run that was stopped goes on from the end of its last whole epoch when the command is given again.
"""

import argparse
import math
import os
import sys
import time
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch_pruning as tp  # noqa: E402
from experiments import ARCHITECTURES, find  # noqa: E402
from rows import Rows  # noqa: E402
from run import HELD_OUT, command, revision  # noqa: E402
from torch import nn  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.data.batches import TrainingBatches, evaluation_batches  # noqa: E402
from graphprune.formats.files import atomic_write  # noqa: E402
from graphprune.formats.onnx_cost import onnx_cost  # noqa: E402

PRUNERS = {
    "group-norm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance),
    "bn-scale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
}
# Shortcuts that are padded by a fixed number of channels: torch-pruning 1.6.1 cuts what they add up to without them,
# and the network no longer runs. What is inside the blocks it can prune.
_LEFT_ALONE = dict.fromkeys(("resnet20", "resnet56"), ("conv1", "layer*.conv2"))
_STEPS = 400  # of the removal: the budget is met to a fraction of a percent
_BATCH = 250
_KEY = ("network", "pruner", "asked", "epochs", "lr", "sparse", "reg", "seed")  # of a row


class Run:
    """One network, from the trained dense one to the fine-tuned slim one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        train = gp.load_images(f"{options.data}::train", limit=options.limit)
        # The images that ours are held out of training are left out here, too.
        self.train = train.split(min(HELD_OUT / len(train), 0.1), options.seed)[0]
        self.val = gp.load_images(f"{options.data}::val")
        self.model = gp.load_model(find(options.models, options.network), arch=ARCHITECTURES[options.network]).eval()
        self.example = torch.zeros(1, *self.train.preprocess.input_shape)
        self.dense = self._answers()
        self.batches = TrainingBatches(self.train, options.batch_size, seed=options.seed)
        self.labels = torch.zeros(len(train.pixels), dtype=torch.long)
        self.labels[torch.from_numpy(self.train.indices)] = torch.from_numpy(self.train.labels)
        self.total = round(options.epochs * self.batches.steps_per_epoch)
        self.sparse = round(options.sparse * self.total)
        self.costs = {"macs": self._macs(), "params": sum(p.numel() for p in self.model.parameters())}
        self.ops = self._ops()
        self.done = 0  # steps
        self.seconds = 0.0  # of processor time that earlier parts of the run took
        self.optimizer = self._optimizer()
        name = "-".join(f"{key}{getattr(options, key)}" for key in (*_KEY, "limit"))
        self.checkpoint = options.work / f"{name}.checkpoint"
        if self.checkpoint.exists():
            self._load()
        self.pruner = self._pruner() if self.done <= self.sparse else None

    def _pruner(self) -> Any:
        kind, importance = PRUNERS[self.options.pruner]
        last = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
        return kind(
            self.model,
            self.example,
            importance=importance(),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=0.95,
            iterative_steps=_STEPS,
            ignored_layers=[last, *self._left_alone()],
            reg=self.options.reg,
        )

    def _left_alone(self) -> list[nn.Module]:
        patterns = _LEFT_ALONE.get(self.options.network, ())
        return [m for name, m in self.model.named_modules() if any(fnmatch(name, pattern) for pattern in patterns)]

    def _macs(self) -> float:
        path = self.options.work / f"{self.options.network}-{self.options.pruner}.onnx"
        gp.export_onnx(self.model.eval(), (self.example,), path, force=True)
        return float(onnx_cost(path).macs)

    def _ops(self) -> float:
        return float(tp.utils.count_ops_and_params(self.model, self.example)[0])

    @torch.no_grad()
    def _answers(self) -> np.ndarray:
        self.model.eval()
        return torch.cat([self.model(batch) for batch in evaluation_batches(self.val, _BATCH)]).numpy()

    def go(self) -> dict[str, Any]:
        """Train sparsely, remove, fine-tune; the row."""
        start = time.process_time() - self.seconds
        for step in range(self.done, self.total):
            if step % self.batches.steps_per_epoch == 0:
                self._save(step, time.process_time() - start)
            if step == self.sparse:
                self._remove()
                self.optimizer = self._optimizer()
            for group in self.optimizer.param_groups:
                group["lr"] = 0.5 * self.options.lr * (1 + math.cos(math.pi * step / self.total))
            if step < self.sparse and step % self.batches.steps_per_epoch == 0:
                self.pruner.update_regularizer()
            loss = self._step(step)
            if step % 100 == 0:
                print(f"{step} of {self.total}, loss {loss:.3f}", flush=True)
        answers = self._answers()
        right = [(found.argmax(1) == self.val.labels).mean() for found in (self.dense, answers)]
        return {
            **{name: getattr(self.options, name) for name in _KEY},
            "macs": self._macs() / self.costs["macs"],
            "params": sum(p.numel() for p in self.model.parameters()) / self.costs["params"],
            "accuracy_dense": float(right[0]),
            "accuracy": float(right[1]),
            "agreement": float((self.dense.argmax(1) == answers.argmax(1)).mean()),
            "cpu_minutes": round((time.process_time() - start) / 60, 1),
            "command": command().replace("run.py", "with_labels.py"),
            "revision": revision(),
            "torch_pruning": version("torch-pruning"),
        }

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.model.parameters(), lr=self.options.lr, momentum=0.9, nesterov=True, weight_decay=self.options.decay
        )

    def _save(self, step: int, seconds: float) -> None:
        """Keep the state before `step`, the first of an epoch: pruners regularize by what they find there."""
        kept = {"step": step, "seconds": seconds, "model": self.model, "optimizer": self.optimizer.state_dict()}
        with atomic_write(self.checkpoint) as path:
            torch.save(kept, path)

    def _load(self) -> None:
        kept = torch.load(self.checkpoint, weights_only=False)  # a whole network: after removal its shapes are its own
        self.done, self.seconds, self.model = kept["step"], kept["seconds"], kept["model"]
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(kept["optimizer"])

    def _step(self, step: int) -> float:
        self.model.train()
        at = divmod(step, self.batches.steps_per_epoch)
        images = self.batches.batch(*at).to(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        labels = self.labels[torch.from_numpy(self.batches.chosen(*at))]
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        if step < self.sparse:
            self.pruner.regularize(self.model)
        self.optimizer.step()
        return float(loss.detach())

    def _remove(self) -> None:
        self.model.eval()
        for _ in range(_STEPS):
            if self._ops() <= self.options.asked * self.ops:
                return
            self.pruner.step()
        raise SystemExit(f"error: {self.options.pruner} does not come down to {self.options.asked:g} of the work")


def main() -> None:
    """One run, unless its row is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(ARCHITECTURES))
    parser.add_argument("--pruner", choices=sorted(PRUNERS), default="group-norm")
    parser.add_argument("--macs", dest="asked", type=float, required=True)
    parser.add_argument("--epochs", type=float, required=True)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--sparse", type=float, default=0.4, help="share of the epochs with regularization")
    parser.add_argument("--reg", type=float, default=1e-4, help="weight of the pruner's regularization")
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=HERE / "runs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rows = Rows(options.results / "with-labels.json", _KEY)
    if rows.has(**{name: getattr(options, name) for name in _KEY}):
        print("done already")
        return
    run = Run(options)
    row = run.go()
    rows.add(row)
    run.checkpoint.unlink(missing_ok=True)
    print(row)


if __name__ == "__main__":
    main()

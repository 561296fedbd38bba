"""What a closed-form reconstruction keeps of a network, and what it takes, beside plain removal and BatchNorm alone.

    python benchmarks/reconstruction/run.py --data cifar10-jpeg.zip --models MODELS

Channels are chosen and weights fitted on images of `train/`, without labels; the result is judged on all of `val/`.
Seconds are of the processor, one thread, and hold everything but reading images and judging. Rows go to
results/cifar10.json as they come, and are not repeated. `python benchmarks/reconstruction/report.py` makes the page.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "cifar10"), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from experiments import ARCHITECTURES, find  # noqa: E402
from rows import Rows  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.data.batches import evaluation_batches  # noqa: E402
from graphprune.passes.fx.cut import cut_graph, named_tensors  # noqa: E402
from graphprune.reconstruction.reconstruct import Reconstruction  # noqa: E402
from graphprune.training.batchnorm import reestimate_batch_norm  # noqa: E402
from graphprune.training.removal import Removal  # noqa: E402

SHARES = {"resnet56": (0.5, 0.4), "vgg_small": (0.5, 0.3)}
_BATCH, _STATISTICS = 50, 500
_POOL = 10_000  # images of train/ that are drawn from

Found = tuple[torch.nn.Module, np.ndarray, float]


class Bench:
    """A network with its images."""

    def __init__(self, model: torch.nn.Module, train: gp.ImageSource, val: gp.ImageSource, images: int) -> None:
        self.train, self.val, self.images = train, val, images
        self.graph = gp.trace(model.eval(), (torch.zeros(1, *self.train.preprocess.input_shape),))
        self._dense = self._answers(self.graph.front_end.module.eval())

    @classmethod
    def of(cls, name: str, options: argparse.Namespace) -> "Bench":
        """A network of benchmarks/cifar10."""
        train = gp.load_images(f"{options.data}::train", limit=_POOL)
        model = gp.load_model(find(options.models, name), arch=ARCHITECTURES[name])
        return cls(model, train, gp.load_images(f"{options.data}::val"), options.images)

    @torch.no_grad()
    def _answers(self, module: torch.nn.Module) -> list[np.ndarray]:
        return [module(batch).numpy() for batch in evaluation_batches(self.val, _BATCH)]

    def judged(self, module: torch.nn.Module, kept: np.ndarray) -> dict[str, float]:
        """Agreement on the images to judge by, and accuracy where these have labels."""
        dense, found = (np.concatenate(answers) for answers in (self._dense, self._answers(module.eval())))
        row = {"agreement": float((dense.argmax(1) == found.argmax(1)).mean())}
        if self.val.labels is None:
            row["top5"] = float((np.argsort(-found, 1)[:, :5] == dense.argmax(1)[:, None]).any(1).mean())
        else:
            row["accuracy"] = float((found.argmax(1) == self.val.labels).mean())
            row["dense_accuracy"] = float((dense.argmax(1) == self.val.labels).mean())
        return {**row, "macs": float(self.graph.cost.macs(kept) / self.graph.cost.macs(self.graph.all_kept()))}

    def plain(self, share: float, seed: int) -> Found:
        """Channels chosen by `taylor`, and nothing more."""
        start = time.process_time()
        plan = gp.plan(self.graph, macs=share, importance="taylor", images=self.train, seed=seed)
        removed = self.graph.removed_by(plan)
        return Removal(self.graph, []).cut(~removed), ~removed, time.process_time() - start

    def batch_norm(self, share: float, seed: int) -> Found:
        """The same with BatchNorm statistics re-estimated."""
        module, kept, seconds = self.plain(share, seed)
        start = time.process_time()
        reestimate_batch_norm(module, module, list(evaluation_batches(self.train.sample(_STATISTICS, seed), _BATCH)))
        return module, kept, seconds + time.process_time() - start

    def fitted(self, share: float, seed: int, importance: str = "reconstruction") -> Found:
        """Layers fitted in closed form, after a choice by what that costs, or by `taylor`."""
        start = time.process_time()
        seen = Reconstruction(self.graph, self.train, number=self.images, seed=seed)
        is_own = importance == "reconstruction"
        seen.look(moments=is_own)
        scores = seen.scores() if is_own else importance
        plan = gp.plan(self.graph, macs=share, importance=scores, images=self.train, seed=seed)
        state, _ = seen.fit(plan)
        seconds = time.process_time() - start
        dense = copy.deepcopy(self.graph.front_end.module)
        dense.load_state_dict(state)
        removed = self.graph.removed_by(plan)
        return cut_graph(self.graph, plan, removed, named_tensors(dense)), ~removed, seconds


METHODS: Mapping[str, Callable[[Bench, float, int], Found]] = {
    "reconstruction": Bench.fitted,
    "batch norm": Bench.batch_norm,
    "plain removal": Bench.plain,
    "reconstruction, chosen by taylor": lambda bench, share, seed: bench.fitted(share, seed, "taylor"),
}


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(SHARES))
    parser.add_argument("--methods", default=",".join(m for m in METHODS if "," not in m))
    parser.add_argument("--images", type=int, default=1000, help="to fit to")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(options.results / "cifar10.json", ("network", "share", "method", "images", "seed"))
    for name in options.networks.split(","):
        bench = None
        for share in SHARES[name]:
            for method in options.methods.split(","):
                for seed in map(int, options.seeds.split(",")):
                    key = {"network": name, "share": share, "method": method, "images": options.images, "seed": seed}
                    if rows.has(**key):
                        continue
                    bench = bench or Bench.of(name, options)
                    module, kept, seconds = METHODS[method](bench, share, seed)
                    row = {**key, **bench.judged(module, kept), "cpu_seconds": round(seconds, 1)}
                    rows.add(row)
                    print(row, flush=True)


if __name__ == "__main__":
    main()

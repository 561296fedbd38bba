"""Policies, criteria and the 3-sigma pass on trained networks, before any training; criteria after the same training.

    python benchmarks/search/run.py policies --data cifar10-jpeg.zip --models MODELS
    python benchmarks/search/run.py criteria --data cifar10-jpeg.zip --models MODELS
    python benchmarks/search/run.py trained --data cifar10-jpeg.zip --models MODELS --epochs 1
    python benchmarks/search/run.py sigma --networks vgg16_bn_linear --data cifar10-jpeg.zip --models MODELS
    python benchmarks/search/run.py seconds --data cifar10-jpeg.zip --models MODELS --threads 2

Half of the multiply-accumulates are removed in one shot. What searches try is judged on images of `train/`; the result,
with BatchNorm statistics re-estimated on images of `train/`, on all of `val/`. Rows go to results/*.json as they come,
and are not repeated. `python benchmarks/search/report.py` makes the page.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "cifar10"), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from experiments import ARCHITECTURES, find  # noqa: E402
from rows import Rows  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.data.batches import evaluation_batches  # noqa: E402
from graphprune.importance.criteria import CRITERIA  # noqa: E402
from graphprune.search import SearchOptions, Trial  # noqa: E402
from graphprune.training.batchnorm import reestimate_batch_norm  # noqa: E402
from graphprune.training.engine import Engine  # noqa: E402
from graphprune.training.linear_sparsity import LinearSparsity  # noqa: E402
from graphprune.training.removal import Removal  # noqa: E402
from graphprune.verification.closeness import Agreement  # noqa: E402

SIGMAS = (1.0, 1.5, 2.0, 2.5, 3.0)
SEARCHES = ("random", "bee-colony", "ddpg")
PLAIN = ("uniform", "threshold")
MACS = 0.5
_BATCH, _CALIBRATION = 250, 500
_POOL = 10_000  # images of train/ that scores, searches and statistics draw from


class Bench:
    """A network with its images."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.train = gp.load_images(f"{options.data}::train", limit=_POOL)
        self.val = gp.load_images(f"{options.data}::val")
        self.model = gp.load_model(find(options.models, name), arch=ARCHITECTURES[name]).eval()
        self.graph = gp.trace(self.model, (torch.zeros(1, *self.train.preprocess.input_shape),))
        self._removal = Removal(self.graph, [])
        self._statistics = list(evaluation_batches(self.train.sample(_CALIBRATION, 0), _BATCH))
        self._dense = self._answers(self.graph.front_end.module.eval())

    @torch.no_grad()
    def _answers(self, module: torch.nn.Module) -> list[np.ndarray]:
        return [module(batch).numpy() for batch in evaluation_batches(self.val, _BATCH)]

    def judge(self, plan: gp.PruningPlan) -> dict[str, float]:
        """Agreement and accuracy on `val/` of the network cut at once."""
        removed = self.graph.removed_by(plan)
        module = self._removal.cut(~removed)
        reestimate_batch_norm(module, module, self._statistics)
        return self.judge_module(module, ~removed)

    def judge_trained(self, config: gp.CompressConfig) -> dict[str, float]:
        """The same of the network after a training that learns from itself."""
        engine = Engine(copy.deepcopy(self.graph.front_end.module), self.graph, self.train, config)
        (result,) = engine.run()
        module = copy.deepcopy(self.graph.front_end.module)
        module.load_state_dict(result.state_dict)
        return {**self.judge_module(module, ~result.removed), "steps": engine.done}

    def judge_module(self, module: torch.nn.Module, kept: np.ndarray) -> dict[str, float]:
        """The same of a network that was changed, and has or uses these groups."""
        answers, agreement = self._answers(module.eval()), Agreement()
        for dense, found in zip(self._dense, answers, strict=True):
            agreement.see([dense], [found], len(found))
        right = np.concatenate(answers).argmax(1) == self.val.labels
        macs = self.graph.cost.macs(kept) / self.graph.cost.macs(self.graph.all_kept())
        return {"agreement": agreement.share, "accuracy": float(right.mean()), "macs": float(macs)}


def missing(
    options: argparse.Namespace, rows: Rows, cases: Sequence[Mapping[str, object]]
) -> Iterator[tuple[Bench, dict[str, Any]]]:
    """What has no row yet: its network, loaded when it is first needed, and the fields that name the row."""
    for name in options.networks.split(","):
        bench = None
        for seed in map(int, options.seeds.split(",")):
            for case in cases:
                key = {"network": name, **case, "seed": seed}
                if not rows.has(**key):
                    bench = bench or Bench(name, options)
                    yield bench, key


def policies(options: argparse.Namespace) -> None:
    """Equal multiply-accumulates, equal numbers of evaluations."""
    rows = Rows(options.results / "policies.json", ("network", "policy", "evaluations", "seed"))
    cases = [
        {"policy": policy, "evaluations": options.evaluations if policy in SEARCHES else 0}
        for policy in (*PLAIN, *SEARCHES)
    ]
    for bench, key in missing(options, rows, cases):
        show(rows, searched(bench, key["policy"], key["evaluations"], key["seed"]))


def searched(bench: Bench, policy: str, evaluations: int, seed: int) -> dict[str, object]:
    """The row of one policy; `best` is the course of the search, the agreement of the best so far on its own images."""
    best: list[float] = []

    def progress(done: int, total: int, trial: Trial) -> None:
        best.append(round(trial.agreement or 0.0, 4))

    search = SearchOptions(evaluations=max(1, evaluations), start="", progress=progress)
    start = time.perf_counter()
    plan = gp.plan(
        bench.graph, macs=MACS, policy=policy, importance="taylor", images=bench.train, seed=seed, search=search
    )
    seconds = time.perf_counter() - start
    return {
        "network": bench.name,
        "policy": policy,
        "evaluations": evaluations,
        "seed": seed,
        **bench.judge(plan),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "images": search.images,
        "best": best,
    }


def criteria(options: argparse.Namespace) -> None:
    """Every criterion, with widths by its own threshold and with equal shares of every layer."""
    rows = Rows(options.results / "criteria.json", ("network", "criterion", "policy", "seed"))
    cases = [{"criterion": criterion, "policy": policy} for criterion in CRITERIA for policy in PLAIN]
    for bench, key in missing(options, rows, cases):
        plan = gp.plan(
            bench.graph,
            macs=MACS,
            policy=key["policy"],
            importance=key["criterion"],
            images=bench.train,
            seed=key["seed"],
        )
        show(rows, {**key, **bench.judge(plan)})


def trained(options: argparse.Namespace) -> None:
    """Every criterion: channels go at once after a tenth of the training, the rest of it is the same for all."""
    rows = Rows(options.results / "trained.json", ("network", "criterion", "epochs", "seed"))
    cases = [{"criterion": criterion, "epochs": options.epochs} for criterion in CRITERIA]
    for bench, key in missing(options, rows, cases):
        config = gp.CompressConfig(
            macs=MACS,
            course="one-shot",
            sensitivity=key["criterion"],
            epochs=options.epochs,
            seed=key["seed"],
            warmup=0.1,
            lambda_feature=10,
            threads=options.threads,
        )
        show(rows, {**key, **bench.judge_trained(config)})


def sigma(options: argparse.Namespace) -> None:
    """The 3-sigma pass alone, for several k."""
    rows = Rows(options.results / "sigma.json", ("network", "sigma", "seed"))
    for bench, key in missing(options, rows, [{"sigma": k} for k in SIGMAS]):
        module = copy.deepcopy(bench.graph.front_end.module)
        sparsity = LinearSparsity(bench.graph, module, key["sigma"])
        sparsity.apply_(module, bench.graph.all_kept())
        masks = sparsity.masks.values()
        show(
            rows,
            {
                **key,
                **bench.judge_module(module, bench.graph.all_kept()),
                "left": sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks),
                "left_of_normal": math.erfc(key["sigma"] / math.sqrt(2)),
                "dead": int(sparsity.dead.sum()),
            },
        )


def seconds(options: argparse.Namespace) -> None:
    """How long a search of 300 evaluations takes."""
    rows = Rows(options.results / "seconds.json", ("network", "policy", "evaluations", "threads"))
    for name in options.networks.split(","):
        show(rows, searched(Bench(name, options), "ddpg", 300, 0))


def show(rows: Rows, row: dict[str, object]) -> None:
    """Keep and print a row."""
    rows.add(row)
    print({key: value for key, value in row.items() if key != "best"}, flush=True)


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = {"policies": policies, "criteria": criteria, "trained": trained, "sigma": sigma, "seconds": seconds}
    parser.add_argument("what", choices=tuple(modes))
    parser.add_argument("--data", type=Path, required=True, help="the zip with train/ and val/")
    parser.add_argument("--models", type=Path, required=True, help="folder with the reference networks")
    parser.add_argument("--networks", default="resnet56")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=float, default=1, help="of a training, in passes over 10,000 images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    modes[options.what](options)


if __name__ == "__main__":
    main()

"""Members of a family beside runs of their own, on handwritten digits: distance to the dense network's answers.

    python benchmarks/family/digits.py --output benchmarks/family/results/digits.json

A small residual network, three budgets in one run with two members a step, and each budget alone, over several seeds.
Judged on 360 digits that neither network was trained on. Rows carry the revision of the source, so that two ways of
training can be compared by running this at both; those that are there are not run again.
"""

import argparse
import dataclasses
import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cifar10.run import revision  # noqa: E402
from rows import Rows  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.data import ImageSource, Preprocess  # noqa: E402
from graphprune.demo import SIDE, DigitNet, Digits, load_digits, train  # noqa: E402
from graphprune.passes.fx.capture import capture  # noqa: E402
from graphprune.passes.fx.captured import CapturedModule  # noqa: E402
from graphprune.training.engine import Engine  # noqa: E402

SHARES = (0.66, 0.5, 0.33)  # of the multiply-accumulates
_EPOCHS_OF_TRAINING = 6
_CONFIG = gp.CompressConfig(macs=0.5, epochs=20, flip=False, crop=False, precision="float32", threads=1)
_FAMILY = dataclasses.replace(_CONFIG, macs=SHARES, n_students=len(SHARES), students_per_step=2)


def main() -> None:
    """Run what is missing and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--width", type=int, default=16, help="channels of the network's first stage")
    parser.add_argument("--only", metavar="RUN", help='such as family, or "alone 0.5"')
    parser.add_argument("--output", type=Path, default=HERE / "results" / "digits.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(arguments.output, ("revision", "width", "seed", "run", "macs"))
    digits = load_digits()
    dense = train(digits, _EPOCHS_OF_TRAINING, width=arguments.width)
    captured = capture(dense, (torch.zeros(2, 1, SIDE, SIDE),))
    configs = {"family": _FAMILY, **{f"alone {s:g}": dataclasses.replace(_CONFIG, macs=s) for s in SHARES}}
    at = {"revision": revision(), "width": arguments.width}
    for seed in range(arguments.seeds):
        for name, config in configs.items():
            if name != (arguments.only or name) or rows.has(**at, seed=seed, run=name):
                continue
            for row in run(captured, digits, dataclasses.replace(config, seed=seed), arguments.width):
                rows.add({**at, "seed": seed, "run": name, **row})
    show(rows)


def run(captured: CapturedModule, digits: Digits, config: gp.CompressConfig, width: int) -> list[dict[str, float]]:
    """One training; per member the share asked for, and how far its answers are from the dense network's."""
    preprocess = Preprocess.of((SIDE, SIDE), channels=1)
    engine = Engine(captured, gp.trace(captured), ImageSource(digits.train[..., None], preprocess), config)
    images = torch.from_numpy(preprocess(digits.val[..., None]))
    expected = answers(width, captured.state_dict(), images)
    found = []
    for number, result in enumerate(engine.run()):
        own = answers(width, result.state_dict, images)
        found.append(
            {
                "macs": config.budget(number).macs or 1.0,
                "distance": float((own - expected).square().mean() / expected.var()),
                "agreement": float((own.argmax(1) == expected.argmax(1)).float().mean()),
            }
        )
    return found


@torch.no_grad()
def answers(width: int, state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Logits of the network with these weights."""
    net = DigitNet(width)
    net.load_state_dict(state)
    return net.eval()(images)


def show(rows: Rows) -> None:
    """Means over the seeds."""
    found = defaultdict(list)
    for row in rows.rows:
        at = (row["revision"], row["width"], row["run"], row["macs"])
        found[at].append((row["distance"], row["agreement"]))
    for (at, width, name, macs), values in found.items():
        distance, agreement = np.mean(values, axis=0)
        print(f"{at}  width {width}  {name:10}  {macs:4g}  {distance:.4f}  {agreement:.2%}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()

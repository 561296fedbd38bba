"""Measured speed-up against the ratio of multiply-accumulates: torch-pruning, and ours by counting and by clock.

    python benchmarks/latency/compare.py make --folder WORK       # what does not depend on the machine; minutes
    python benchmarks/latency/compare.py measure --folder WORK    # on an idle machine
        [--networks resnet56] [--threads 1,2] [--batches 1,16]

Needs torch-pruning and, for two of the networks, torchvision. All files of one network are written by the same exporter
and timed in turns. Nothing is trained: shapes decide the latency. Importance is l2 for all; ours is scaled so that
all layers are worth the same, since random weights do not say which matter: the scores of a set of coupled channels sum
up to the number of layers that have them as their outputs.

    torch-pruning          half of the multiply-accumulates, same share everywhere, as it does by default
    torch-pruning, by 8    likewise, widths rounded to multiples of 8 (and of 16)
    by MACs                half of the multiply-accumulates, align="auto"
    by speed               speedup=2

Rows go to results/compare.json as they come, and are not repeated. What torch-pruning breaks goes to
results/broken.json with its error. It does not know of the zero-padded shortcuts of ResNet56: the layers that they
couple are left alone there, as its user would.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import networks  # noqa: E402
import torch_pruning as tp  # noqa: E402
from rows import Rows  # noqa: E402
from torch import nn  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.formats.onnx_cost import onnx_cost  # noqa: E402
from graphprune.importance.scoring import score_groups  # noqa: E402
from graphprune.latency import LatencyTarget  # noqa: E402
from graphprune.latency.stopwatch import stopwatch  # noqa: E402

SHARE, SPEEDUP = 0.5, 2.0
COARSE, FINE = 0.1, 0.02  # steps of the pruning ratio
#: What torch-pruning is told to leave alone beside the last layer, where it breaks the network otherwise.
IGNORED = {"resnet56": ("conv1", "*.conv2")}
PEERS = {"torch-pruning": None, "torch-pruning, by 8": 8, "torch-pruning, by 16": 16}


def peer(name: str, round_to: int | None) -> nn.Module:
    """The network as torch-pruning leaves it, as close to half of the multiply-accumulates as a ratio gets it."""
    inputs = networks.example(name)[0][:1]
    dense = tp.utils.count_ops_and_params(networks.make(name), inputs)[0]

    def pruned(ratio: float) -> tuple[float, nn.Module]:
        module = networks.make(name)
        ignored = [[part for part in module.modules() if isinstance(part, nn.Linear)][-1]]
        patterns = IGNORED.get(name, ())
        ignored += [part for path, part in module.named_modules() if any(fnmatchcase(path, p) for p in patterns)]
        tp.pruner.MagnitudePruner(
            module,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=round_to,
        ).step()
        return abs(tp.utils.count_ops_and_params(module, inputs)[0] / dense - SHARE), module.eval()

    # Not by halving: rounded widths do not fall steadily with the ratio.
    near = min((step * COARSE for step in range(1, 10)), key=lambda ratio: pruned(ratio)[0])
    around = [near + step * FINE for step in range(-4, 5) if 0 < near + step * FINE < 1]
    return min(map(pruned, around), key=lambda found: found[0])[1]


def peers(name: str, folder: Path, broken: Rows) -> dict[str, Path]:
    """Files that do not depend on how they are run; what the peer breaks is noted."""
    inputs = networks.example(name)
    dense = folder / "dense.onnx"
    if not dense.exists():
        gp.export_onnx(networks.make(name), inputs, dense)
    files = {"dense": dense}
    for label, round_to in PEERS.items():
        path = folder / f"peer-{round_to}.onnx"
        if path.exists():
            files[label] = path
            continue
        if broken.has(network=name, variant=label):
            continue
        try:
            module = peer(name, round_to)
        except Exception as error:  # whatever the peer raises, or the network that it leaves
            broken.add({"network": name, "variant": label, "error": f"{type(error).__name__}: {error}"[:200]})
            print(f"{label} cannot do {name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        files[label] = gp.export_onnx(module, inputs, path)
    return files


def ours(name: str, target: LatencyTarget, folder: Path) -> Iterator[tuple[str, Path, float]]:
    """Our files for one way of running, and the seconds that planning took once latencies were known."""
    module, inputs = networks.make(name), networks.example(name)
    graph = gp.trace(module, inputs)
    scores = score_groups(graph, "l2")
    for group_set in graph.sets:
        layers = sum(len(graph.shapes[weight]) > 1 for weight, _, _ in group_set.outputs)
        scores[group_set.groups] *= layers / scores[group_set.groups].sum()
    with stopwatch(graph, target) as watch:
        for label, goal in (("by MACs", {"macs": SHARE, "align": "auto"}), ("by speed", {"speedup": SPEEDUP})):
            start = time.perf_counter()
            plan = gp.plan(graph, **goal, importance=scores, stopwatch=watch)
            seconds = time.perf_counter() - start
            path = folder / f"{label.replace(' ', '-')}-{target.batch}-{target.threads}.onnx"
            yield label, gp.export_onnx(gp.slim(module, plan, inputs), inputs, path), seconds


def measure(name: str, files: dict[str, Path], target: LatencyTarget, folder: Path) -> Iterator[dict[str, object]]:
    """The rows of one network and way of running."""
    files, seconds = dict(files), {}
    for label, path, took in ours(name, target, folder):
        files[label], seconds[label] = path, took
    report = gp.benchmark(files, threads=target.threads, batch=target.batch, min_seconds=2.0)
    dense = onnx_cost(files["dense"]).macs
    for label, path in files.items():
        timing = report[label]
        yield {
            "network": name,
            "threads": target.threads,
            "batch": target.batch,
            "variant": label,
            "macs_ratio": round(dense / onnx_cost(path).macs, 3),
            "speedup": round(timing.speedup, 3),
            "interval": [round(end, 3) for end in timing.speedup_interval],
            "median_ms": round(timing.median_ms, 4),
            "plan_seconds": round(seconds[label], 1) if label in seconds else None,
            "interference": report.interference,
        }


def main() -> None:
    """Measure what has no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("--folder", type=Path, required=True, help="for the files")
    parser.add_argument("--networks", default=",".join(networks.NETWORKS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = Rows(options.results / "compare.json", ("network", "threads", "batch", "variant"))
    broken = Rows(options.results / "broken.json", ("network", "variant"))
    for name in options.networks.split(","):
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "make":
            peers(name, folder, broken)
            continue
        ways = [
            LatencyTarget(threads=threads, batch=batch)
            for batch in map(int, options.batches.split(","))
            for threads in map(int, options.threads.split(","))
        ]
        ways = [way for way in ways if not rows.has(network=name, threads=way.threads, batch=way.batch)]
        files = peers(name, folder, broken) if ways else {}
        for way in ways:
            for row in measure(name, files, way, folder):
                rows.add(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()

"""How far predictions of the latency model are off, on allocations that nothing was fitted to, and what it costs.

    python benchmarks/latency/prediction.py [--networks resnet56,resnet50] [--threads 1,2] [--batches 1,16]

For every network, batch and number of threads the model is measured, unless this machine has one; then 20 random
allocations on the lattice are cut, and predicted and measured latency are compared, also with the model's sum alone,
without its trend. Rows go to results/prediction.json as they come, and are not
repeated.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import networks  # noqa: E402
import numpy as np  # noqa: E402
from rows import Rows  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.latency import LatencyTarget  # noqa: E402
from graphprune.latency.build import latency_model  # noqa: E402
from graphprune.latency.cut import cut_file  # noqa: E402
from graphprune.latency.sampling import draw, lattice_of  # noqa: E402
from graphprune.latency.timing import Reference  # noqa: E402
from graphprune.widths import set_widths  # noqa: E402

ALLOCATIONS = 20
SEED = 12


def measure(name: str, target: LatencyTarget) -> dict[str, object]:
    """The row of one network and way of running."""
    module, inputs = networks.make(name), networks.example(name)
    graph = gp.trace(module, inputs)
    with tempfile.TemporaryDirectory() as folder:
        dense = gp.export_onnx(module, inputs, Path(folder) / "dense.onnx")
        model = latency_model(graph, dense, target)
        reference = Reference(dense, target)
        rng = np.random.default_rng(SEED)
        choices = [lattice_of(s, model.block) for s in graph.sets]
        pairs, sums = [], []
        for _ in range(ALLOCATIONS):
            kept = draw(graph, choices, rng)
            pairs.append((model.share(graph, kept), reference.share(cut_file(graph, dense, kept))[0]))
            sums.append(model.summed(set_widths(graph, kept)) / model.dense_seconds)
    errors = np.array([predicted / measured - 1 for predicted, measured in pairs])
    without = np.array([summed / measured - 1 for summed, (_, measured) in zip(sums, pairs, strict=True)])
    return {
        "network": name,
        "threads": target.threads,
        "batch": target.batch,
        "dense_ms": round(model.dense_ms, 4),
        "build_seconds": round(model.seconds, 1),
        "mean_error": round(float(np.abs(errors).mean()), 4),
        "bias": round(float(errors.mean()), 4),
        "max_error": round(float(np.abs(errors).max()), 4),
        "mean_error_of_sum": round(float(np.abs(without).mean()), 4),
        "predicted_and_measured": [[round(p, 4), round(m, 4)] for p, m in pairs],
    }


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(networks.NETWORKS))
    parser.add_argument("--threads", default="1")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = Rows(options.results / "prediction.json", ("network", "threads", "batch"))
    for name in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            for threads in map(int, options.threads.split(",")):
                if rows.has(network=name, threads=threads, batch=batch):
                    continue
                row = measure(name, LatencyTarget(threads=threads, batch=batch))
                rows.add(row)
                print({key: value for key, value in row.items() if key != "predicted_and_measured"}, flush=True)


if __name__ == "__main__":
    main()

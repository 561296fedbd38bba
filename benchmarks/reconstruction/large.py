"""Time and memory of a reconstruction of torchvision's ResNet50 at 224 x 224, with random weights and random images.

    pip install torch==2.14.1 torchvision==0.29.1    # in an environment of its own, with the project
    python benchmarks/reconstruction/large.py

Memory is the largest that the process ever held, from which what it held before is not taken off. With random weights
there is nothing to agree with: what is kept of the network is told by the other benchmarks.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rows import Rows  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.data import ImageSource, Preprocess  # noqa: E402
from graphprune.reconstruction.reconstruct import Reconstruction  # noqa: E402


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, options.network)(weights=None).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (options.images, 224, 224, 3), dtype=np.uint8)
    images = ImageSource(pixels, Preprocess.of((224, 224), 3))
    graph = gp.trace(model, (torch.zeros(1, 3, 224, 224),))
    times = [time.process_time()]
    seen = Reconstruction(graph, images, number=options.images)
    seen.look(moments=True)
    times.append(time.process_time())
    plan = gp.plan(graph, macs=options.macs, importance=seen.scores())
    times.append(time.process_time())
    seen.fit(plan)
    times.append(time.process_time())
    row = {
        "network": options.network,
        "images": len(seen.source),
        "macs": options.macs,
        "cpu_seconds": {
            name: round(b - a, 1) for name, a, b in zip(("look", "choose", "fit"), times[:-1], times[1:], strict=True)
        },
        "cpu_seconds_in_all": round(times[-1] - times[0], 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch": torch.__version__,
    }
    Rows(options.results / "large.json", ("network", "images", "macs")).add(row)
    print(row)


if __name__ == "__main__":
    main()

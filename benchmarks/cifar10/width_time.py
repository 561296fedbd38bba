"""How long a pair of convolutions takes in training by its inner width; one thread, batches of 64, channels last.

    python benchmarks/cifar10/width_time.py --output benchmarks/cifar10/results/width-time.json

The pairs are those of a residual block: 3x3 from the trunk to so many channels, and back. Forward and backward pass of
both, processor milliseconds, the shortest of the repeats; sizes and trunks of the three stages of a CIFAR ResNet.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from graphprune.formats.files import atomic_write_json  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402

_STAGES = {(16, 32): (2, 3, 4, 6, 8, 12, 16), (32, 16): (4, 8, 12, 16, 24, 32), (64, 8): (16, 32, 40, 48, 64)}
_BATCH = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for (trunk, size), widths in _STAGES.items():
        for width in widths:
            rows.append(
                {
                    "trunk": trunk,
                    "size": size,
                    "width": width,
                    "milliseconds": pair(trunk, size, width, arguments.repeats),
                }
            )
            print(rows[-1], flush=True)
    if arguments.output:
        atomic_write_json(arguments.output, {"batch_size": _BATCH, "rows": rows, "machine": machine_facts().to_dict()})


def pair(trunk: int, size: int, width: int, repeats: int) -> float:
    """Milliseconds of one pair."""
    layers = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((trunk, width), (width, trunk))))
    layers = layers.to(memory_format=torch.channels_last)
    images = torch.randn(_BATCH, trunk, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        out = layers(images)
        torch.autograd.backward(out, torch.ones_like(out))
        seconds.append(time.process_time() - start)
    return round(1e3 * min(seconds[1:]), 2)  # the first pays for set-up


if __name__ == "__main__":
    main()

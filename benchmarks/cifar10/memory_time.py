"""What keeping freed memory saves of a step: `graphprune.runtime.memory.freed_memory_kept` beside glibc's defaults.

*huge pages*: kept, and glibc told to ask for pages of 2 MB, which it takes from the environment alone.

    python benchmarks/cifar10/memory_time.py --output benchmarks/cifar10/results/memory-time.json

Steps of three dense networks on random images, one thread. Each measurement is a process of its own, since glibc's
thresholds adapt to what was freed before; with and without in turns, the median of the repeats.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from graphprune import models  # noqa: E402
from graphprune.formats.files import atomic_write_json  # noqa: E402
from graphprune.runtime.machine import machine_facts  # noqa: E402
from graphprune.runtime.memory import freed_memory_kept  # noqa: E402

_BATCH, _STEPS = 64, 4
_HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
#: Name -> whether freed memory is kept, and what is set in the environment.
WAYS: dict[str, tuple[bool, dict[str, str]]] = {"default": (False, {}), "kept": (True, {}), "huge pages": (True, _HUGE)}


def child(name: str, *, is_kept: bool) -> dict[str, float]:
    """Processor seconds of a step, those of the system among them, page faults, and memory in MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with freed_memory_kept() if is_kept else nullcontext():
        net = getattr(models, name)().to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        images = torch.randn(_BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for step in range(_STEPS + 2):
            if step == 2:
                before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
            optimizer.zero_grad()
            torch.autograd.backward(net(images).square().mean())
            optimizer.step()
        seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds / _STEPS,
        "system_seconds": (after.ru_stime - before.ru_stime) / _STEPS,
        "page_faults": (after.ru_minflt - before.ru_minflt) / _STEPS,
        "most_memory_mb": after.ru_maxrss / 1024,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "vgg_small", "mobilenet_v2"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child[0], is_kept=WAYS[arguments.child[1]][0])))
        return
    rows = []
    for name in arguments.models:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way, measured in found.items():
                command = [sys.executable, str(Path(__file__)), "--child", name, way]
                environment = {**os.environ, **WAYS[way][1]}
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
                measured.append(json.loads(done.stdout))
        row = {
            way: {k: round(float(np.median([m[k] for m in all_])), 4) for k in all_[0]} for way, all_ in found.items()
        }
        faster = {way: round(row["default"]["seconds"] / row[way]["seconds"], 3) for way in WAYS if way != "default"}
        rows.append({"model": name, **row, "times_faster": faster})
        print(rows[-1], flush=True)
    if arguments.output:
        result = {
            "batch_size": _BATCH,
            "repeats": arguments.repeats,
            "rows": rows,
            "machine": machine_facts().to_dict(),
        }
        atomic_write_json(arguments.output, result)


if __name__ == "__main__":
    main()

"""Does `verify` find every planted error, and take no other form of a file for a wrong one?

python benchmarks/verify/fuzz.py --graphs 500 --first 100000 > benchmarks/verify/results/random_outputs.json

Random graphs of `tests/properties/random_outputs.py`: several outputs, unlike scales in one output, detectors' ends.
In as many of them as asked for an error is planted in one small part (those in which it shows nowhere are passed over);
as many are compared with what tools make of the same graph (`tests/properties/same_function.py`).
"""

import argparse
import json
import platform
import sys
from collections import Counter
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / folder) for folder in ("tests/properties", "tests/passes/onnx")]

from random_outputs import inputs_for, random_graph, with_error  # noqa: E402
from same_function import WAYS  # noqa: E402

from graphprune.verification.verify import compare  # noqa: E402


def planted(first: int, graphs: int) -> dict[str, Any]:
    """Errors in graphs from a seed on: how many were planted, and which of them were not found."""
    errors = ((seed, *found) for seed in count(first) if (found := _wrong(seed)) is not None)
    missed, seen = [], 0
    for seed, model, wrong, what in islice(errors, graphs):
        seen += 1
        if compare(model.SerializeToString(), wrong.SerializeToString(), inputs_for(model)).equal:
            missed.append(f"seed {seed}: {what}")
    return {"planted": seen, "found": seen - len(missed), "missed": missed, "last_seed": seed}


def _wrong(seed: int) -> tuple[onnx.ModelProto, onnx.ModelProto, str] | None:
    model, places = random_graph(seed)
    found = with_error(model, places, seed)
    return None if found is None else (model, *found)


def the_same(first: int, graphs: int) -> dict[str, Any]:
    """Graphs from a seed on, each beside what a tool made of it: how often that is called different."""
    alarms, ways = [], Counter()
    for seed in range(first, first + graphs):
        way = WAYS[seed % len(WAYS)]
        model, _ = random_graph(seed)
        other = way(model, np.random.default_rng(seed))
        ways[way.__name__] += 1
        found = compare(model.SerializeToString(), other.SerializeToString(), inputs_for(model))
        if not found.equal:
            alarms.append(f"seed {seed}, {way.__name__}: {found.worst}")
    return {"compared": graphs, "ways": dict(ways), "false_alarms": alarms}


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=500)
    parser.add_argument("--first", type=int, default=100000, help="first seed; tests take others")
    arguments = parser.parse_args()
    result = {
        "command": f"python benchmarks/verify/fuzz.py --graphs {arguments.graphs} --first {arguments.first}",
        "versions": {"python": platform.python_version(), "onnx": onnx.__version__, "numpy": np.__version__}
        | {"onnxruntime": onnxruntime.__version__},
        "machine": platform.machine(),
        "with_an_error": planted(arguments.first, arguments.graphs),
        "without": the_same(arguments.first, arguments.graphs),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""The process that checks some random graphs or damaged files; started by `fuzz.py`, not by hand."""

import argparse
import gc
import logging
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / folder) for folder in ("benchmarks/coverage", "tests/properties", "tests/passes/onnx")]

import numpy as np  # noqa: E402
from corrupt_onnx import corrupted  # noqa: E402
from onnx_checks import Broken, check_corrupted, check_valid  # noqa: E402
from process import Row, describe, save_rows  # noqa: E402
from random_onnx import OPSETS, numbered_model, random_model, random_recipe  # noqa: E402

from graphprune.passes.errors import GraphPruneError  # noqa: E402


def main() -> None:
    """Check the examples that were asked for and leave their rows in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("graphs", "damaged"))
    parser.add_argument("seed", type=int)
    parser.add_argument("start", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--row", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    gc.collect()
    gc.freeze()  # slimming collects garbage, which takes long among all that libraries hold
    check = graph if arguments.kind == "graphs" else damaged
    numbers = range(arguments.start, arguments.start + arguments.count)
    save_rows(arguments.row, numbers, lambda number: check(arguments.seed, number))


def graph(seed: int, number: int) -> Row:
    """One random graph."""
    model, about = numbered_model(seed, number)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return {"status": "fine", **about, **check_valid(model, Path(folder), number)}
        except Exception as error:  # whatever it is, it is the finding
            return {"status": _kind(error), "opset": about["opset"], **describe(error)}


def damaged(seed: int, number: int) -> Row:
    """One damaged file."""
    rng = np.random.default_rng((seed, number))
    model = random_model(random_recipe(rng, int(rng.integers(2, 8))), number, int(rng.choice(OPSETS)))
    kind, content = corrupted(model, number)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return {"kind": kind, "status": check_corrupted(content, Path(folder)).partition(":")[0]}
        except Exception as error:  # whatever it is, it is the finding
            return {"kind": kind, "status": _kind(error), **describe(error)}


def _kind(error: Exception) -> str:
    return "broken" if isinstance(error, Broken) else "refused wrongly" if isinstance(error, GraphPruneError) else "bug"


if __name__ == "__main__":
    main()

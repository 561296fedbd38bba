"""How far a file read as a torch module is from what onnxruntime computes, and where that was measured."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from graphprune.formats.imported import heads
from graphprune.passes.importer import OnnxModule, call, import_onnx
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_inputs import input_specs, random_inputs
from graphprune.runtime.onnx_session import open_session
from graphprune.version import __version__

_BATCH = 2


@dataclass(frozen=True)
class Difference:
    """How far two ways of computing a file are apart: largest differences relative to each output's scale.

    Attributes:
        error: of torch and onnxruntime.
        torch_to_exact: of torch and the same graph in double precision; None where that was not asked for.
        onnxruntime_to_exact: of onnxruntime and that.
    """

    error: float
    torch_to_exact: float | None = None
    onnxruntime_to_exact: float | None = None

    def status(self, tolerance: float) -> str:
        """Whether a file is computed alike: by the tolerance, or else as near to the exact result as onnxruntime is.

        A graph that cancels, or divides by what is nearly zero, blows rounding up: of two orders of adding the same
        numbers neither is wrong, and both are as far from what exact numbers give.
        """
        if self.error <= tolerance:
            return "equal"
        if self.torch_to_exact is None or self.onnxruntime_to_exact is None:
            return "unequal"
        return "equal within rounding" if self.torch_to_exact <= 2 * self.onnxruntime_to_exact else "unequal"


def difference(
    module: OnnxModule, path: Path, seed: int, feeds: dict[str, np.ndarray] | None = None, tolerance: float = 1e-5
) -> Difference:
    """Difference over all outputs, relative to each one's scale (1 for shares); infinite for another shape.

    Args:
        module: the file as a module.
        path: the file.
        seed: of random inputs.
        feeds: inputs by name; by default random ones, of two samples where the batch is free.
        tolerance: beyond it, both are compared with double precision.
    """
    session = open_session(path, optimize=False, outputs=heads(module, path))
    if feeds is None:
        specs = input_specs(session, path.name)
        shapes = {
            spec.name: tuple(d if isinstance(d, int) else _BATCH if not at else 8 for at, d in enumerate(spec.dims))
            for spec in specs
        }
        feeds = random_inputs(specs, shapes, seed=seed)
    expected = session.run(list(module.output_names), feeds)
    found = _outputs(module, feeds)
    error = _largest(found, expected)
    if error <= tolerance:
        return Difference(error)
    with _double():
        exact = _outputs(import_onnx(path), {name: _widened(array) for name, array in feeds.items()})
    return Difference(error, _largest(found, exact), _largest(expected, exact))


@contextmanager
def _double() -> Iterator[None]:
    """Have what is imported and run in here compute in double precision where a file says float."""
    single = call._TYPES
    call._TYPES = {**single, ir.DataType.FLOAT: torch.float64}
    try:
        yield
    finally:
        call._TYPES = single


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _outputs(module: OnnxModule, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    return [output.numpy() for output in (found if isinstance(found, tuple) else (found,))]


def _largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return max((_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return float((found != expected).mean())
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    a, b = np.where(same, 0.0, found.astype(np.float64)), np.where(same, 0.0, expected.astype(np.float64))
    is_share = bool(((expected >= 0) & (expected <= 1)).all())
    size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    scale = max(float(size), 1.0 if is_share else 1e-12)
    error = float(np.abs(a - b).max()) / scale
    return error if np.isfinite(error) else float("inf")


def facts() -> dict[str, Any]:
    """Machine, versions and revision."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"graphprune": __version__, "torch": torch.__version__}
    versions |= {"onnx": onnx.__version__, "onnxruntime": ort.__version__}
    return {"revision": revision, "versions": versions, "machine": machine_facts().to_dict()}

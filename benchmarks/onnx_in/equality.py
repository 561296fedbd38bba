"""How far a file read as a torch module is from what onnxruntime computes, and where that was measured."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from graphprune.formats.imported import heads
from graphprune.passes.importer import OnnxModule
from graphprune.runtime.machine import machine_facts
from graphprune.runtime.onnx_inputs import input_specs, random_inputs
from graphprune.runtime.onnx_session import open_session
from graphprune.version import __version__

_BATCH = 2


def difference(module: OnnxModule, path: Path, seed: int, feeds: dict[str, np.ndarray] | None = None) -> float:
    """Largest difference over all outputs, relative to each one's scale (1 for shares); infinite for another shape.

    Args:
        module: the file as a module.
        path: the file.
        seed: of random inputs.
        feeds: inputs by name; by default random ones, of two samples where the batch is free.
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
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    outputs = found if isinstance(found, tuple) else (found,)
    return max((_error(a.numpy(), b) for a, b in zip(outputs, expected, strict=True)), default=0.0)


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

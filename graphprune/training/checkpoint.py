"""Checkpoints: the whole state of a run in one file, so that a killed run continues to the same result.

The file is written under a temporary name and renamed, and is read with `weights_only=True`: loading one never runs
code from it.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from graphprune.config import CompressConfig
from graphprune.formats.files import atomic_write_through_memory
from graphprune.passes.errors import ModelLoadError, UsageError

SCHEMA = 1
"""Version of what is in a checkpoint: the field `format`.

A further field that a reader can do without, and a further setting whose default does what was done before, change
nothing. For anything else: raise the number by one; let `load_checkpoint` bring the older number to what the engine
expects, or refuse it by name where that cannot be done; keep a checkpoint of the old number under `tests/old_files/`,
in the folder of the version that wrote it, and resume from it in `tests/test_old_files.py`; say in docs/stability.md
from which version on the new one is written.
"""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values only) under `path`, whole or not at all.

    Tensors are written as ones of the CPU, so that a run can go on where its device is missing.
    """
    on_cpu = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), {"format": SCHEMA, **state})
    atomic_write_through_memory(path, lambda file: torch.save(on_cpu, file))


def load_checkpoint(path: Path, config: CompressConfig, model: str) -> dict[str, Any]:
    """Read a checkpoint of a run with the same settings and model.

    Args:
        path: the file.
        config: the settings to continue with.
        model: digest of the model to continue with.

    Raises:
        ModelLoadError: the file is missing or is not a checkpoint.
        UsageError: the run was another one; names the setting that differs.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path}: there is no checkpoint to resume from; start without `resume`") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ModelLoadError(f"{path}: not a readable checkpoint; remove it and start without `resume`") from error
    if not isinstance(state, dict) or state.get("format") != SCHEMA:
        raise ModelLoadError(f"{path}: not a checkpoint of this version; remove it and start without `resume`")
    config.refuse_resume_from(state["fingerprint"])
    if state["model"] != model:
        raise UsageError(f"cannot resume: {path} was made from another model; give the same model or start afresh")
    return state


def model_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Models from files: ONNX, torch.export archives, state dicts, and, with permission, pickled modules.

| file                             | holds                         | needs                              |
|----------------------------------|-------------------------------|------------------------------------|
| .onnx                            | ONNX model                    | nothing                            |
| .pt2                             | torch.export archive          | nothing                            |
| .safetensors                     | state dict                    | an architecture                    |
| .pt, .pth, .ckpt, .bin, .tar     | state dict, checkpoint        | an architecture                    |
| .pt, .pth, .ckpt, .bin, .tar     | pickled nn.Module             | permission: unpickling runs code   |
| .index.json                      | names of files with parts of  | an architecture                    |
|                                  | a state dict (Hugging Face)   |                                    |

A checkpoint may hold several sets of weights (`entries`), under names that are not quite the network's (`fitting`);
`choice` takes one of them.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import is_pt2_package

from graphprune.formats.architecture import ARCH_FORM, resolve_arch
from graphprune.formats.choice import any_weights, fitting_weights, whole_network
from graphprune.formats.entries import OF_TRAINING, Checkpoint, StateDict
from graphprune.formats.pickles import needs_trust, read_pickle
from graphprune.formats.pt2 import load_archive
from graphprune.formats.user_code import one_line
from graphprune.passes.errors import ModelLoadError, UsageError

__all__ = ["load_model", "load_weights", "resolve_arch"]

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
_INDEX = ".index.json"


def load_model(
    path: str | Path, *, arch: str | None = None, entry: str | None = None, trust_pickle: bool = False
) -> nn.Module | ExportedProgram:
    """Return the network in a file: float32, in evaluation mode.

    A .pt2 gives the ExportedProgram it holds, as it was exported; an ONNX file a module that computes what it does,
    with parameters named as its initializers, compared with onnxruntime.

    Args:
        path: .onnx, .pt2, .safetensors, or what torch.save wrote (.pt, .pth, .ckpt, .bin, .tar).
        arch: the architecture of a state dict; see resolve_arch.
        entry: which of the weights in a checkpoint, by their keys joined by dots ("state_dict_ema", "ema.module"); "."
            for those without a key. By default those that fit, averages over the training before others.
        trust_pickle: allow the file to run code while it is loaded.

    Raises:
        ModelLoadError: the file is missing or broken, does not fit the architecture, or needs an argument that was not
            given.
        UsageError: the architecture is malformed, or given for a file that brings its own; or there is no such entry.
    """
    path = Path(path)
    _require_file(path)
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".pt2") or (suffix in _PICKLES and is_pt2_package(str(path))):
        _refuse_arch(path, arch)
        if entry is not None:
            raise UsageError(f'{path} holds one model, and no sets of weights: leave `entry="{entry}"` out')
        if suffix != ".onnx":
            return load_archive(path, trust=trust_pickle)
        from graphprune.formats.imported import load_onnx

        return load_onnx(path)
    checkpoint = _checkpoint(path, trust=trust_pickle)
    checkpoint = checkpoint if entry is None else checkpoint.part(entry)
    has_weights = _has_weights(checkpoint)
    if checkpoint.modules and (arch is None or not has_weights):
        _refuse_arch(path, arch)
        return whole_network(checkpoint).float().eval()
    if not has_weights:
        raise _no_weights(checkpoint)
    if arch is None:
        raise ModelLoadError(
            f"{path} holds weights without a network: say what builds theirs, as in "
            f'`arch="graphprune.models:resnet56"`; the form is {ARCH_FORM}'
        )
    model = resolve_arch(arch)
    model.load_state_dict(fitting_weights(checkpoint, model, arch), strict=False)
    return model


def load_weights(path: Path) -> StateDict:
    """Return the state dict in a file, whatever network it is of.

    Raises:
        ModelLoadError: the file is missing or broken, or holds something else, or several sets of weights.
    """
    _require_file(path)
    checkpoint = _checkpoint(path, trust=False)
    if not _has_weights(checkpoint):
        raise _no_weights(checkpoint)
    return any_weights(checkpoint)


def _require_file(path: Path) -> None:
    if not path.exists():
        raise ModelLoadError(f"no such file: {path}")
    if not path.is_file():
        raise ModelLoadError(f"{path} is a folder; give the model file in it")
    if not os.access(path, os.R_OK):
        raise ModelLoadError(f"{path} may not be read: its permissions forbid it")


def _refuse_arch(path: Path, arch: str | None) -> None:
    if arch is not None:
        raise UsageError(f'{path} holds a whole model, not only its weights: leave `arch="{arch}"` out')


def _has_weights(checkpoint: Checkpoint) -> bool:
    """Are there weights other than what an optimizer keeps of them?"""
    return any(checkpoint.rank(keys) > OF_TRAINING for keys, _ in checkpoint.states)


def _no_weights(checkpoint: Checkpoint) -> ModelLoadError:
    if checkpoint.foreign:
        return needs_trust(checkpoint.path, checkpoint.foreign)
    return ModelLoadError(f"{checkpoint.path} holds {checkpoint.describe()}, neither a state dict nor a module")


def _checkpoint(path: Path, *, trust: bool) -> Checkpoint:
    if path.name.lower().endswith(_INDEX):
        return Checkpoint(path, _read_shards(path))
    if path.suffix.lower() not in (*_PICKLES, ".safetensors"):
        raise ModelLoadError(
            f"{path} has no known suffix: models are .onnx, .pt2, .safetensors, .pt, .pth, .ckpt, .bin or .tar files"
        )
    return Checkpoint(path, _read(path, trust=trust))


def _read(path: Path, *, trust: bool) -> Any:
    if path.suffix.lower() != ".safetensors":
        return read_pickle(path, trust=trust)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is no readable safetensors file: {one_line(error)}") from error


def _read_shards(path: Path) -> dict[str, Any]:
    """What the files hold that an index lists; they lie beside it."""
    try:
        names = sorted({str(name) for name in json.loads(path.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{path} is no readable index of files with weights: {one_line(error)}") from error
    held: dict[str, Any] = {}
    for name in names:
        if Path(name).name != name:
            raise ModelLoadError(f"{path} lists {name}, which is no file beside it")
        _require_file(path.with_name(name))
        part = _read(path.with_name(name), trust=False)
        if not isinstance(part, dict):
            raise ModelLoadError(f"{path.with_name(name)} holds no state dict")
        held |= part
    return held

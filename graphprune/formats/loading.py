"""Models from files: torch.export archives, state dicts, and, with permission, pickled modules.

| file                       | holds                  | needs                              |
|----------------------------|------------------------|------------------------------------|
| .pt2                       | torch.export archive   | nothing                            |
| .safetensors               | state dict             | an architecture                    |
| .pt, .pth                  | state dict (PyTorch)   | an architecture                    |
| .pt, .pth                  | pickled nn.Module      | permission: unpickling runs code   |
"""

import logging
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import is_pt2_package

from graphprune.formats.architecture import ARCH_FORM, current_folder_importable, one_line, resolve_arch
from graphprune.formats.pt2 import BROKEN_FILE, load_archive
from graphprune.passes.errors import ModelLoadError, UsageError

logger = logging.getLogger("graphprune")

__all__ = ["load_model", "load_weights", "resolve_arch"]

StateDict = dict[str, Tensor]

# Where training scripts put the state dict in a checkpoint, and what wrappers put before its names.
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_MOST_NAMED = 3
_ZIP_START, _PICKLE_START = b"PK", b"\x80"


def load_model(path: str | Path, *, arch: str | None = None, trust_pickle: bool = False) -> nn.Module | ExportedProgram:
    """Return the network in a file: float32, in evaluation mode.

    A .pt2 gives the ExportedProgram it holds, as it was exported; an ONNX file a module that computes what it does,
    with parameters named as its initializers, compared with onnxruntime.

    Args:
        path: .onnx, .pt2, .safetensors, .pt or .pth.
        arch: the architecture of a state dict; see resolve_arch.
        trust_pickle: allow the file to run code while it is loaded.

    Raises:
        ModelLoadError: the file is missing, broken, or does not fit the architecture, or it needs an
            argument that was not given.
        UsageError: the architecture is malformed, or given for a file that brings its own.
    """
    path = Path(path)
    _require_file(path)
    suffix = path.suffix.lower()
    match suffix:
        case ".pt2" | ".pt" | ".pth" if suffix == ".pt2" or is_pt2_package(str(path)):
            _refuse_arch(path, arch)
            return load_archive(path, trust=trust_pickle)
        case ".safetensors":
            return _build(_without_prefixes(_read_safetensors(path), path), path, arch)
        case ".pt" | ".pth":
            held = _unwrap(_read_pickle(path, trust=trust_pickle), path)
            if isinstance(held, nn.Module):
                _refuse_arch(path, arch)
                return held.float().eval()
            return _build(held, path, arch)
        case ".onnx":
            _refuse_arch(path, arch)
            from graphprune.formats.imported import load_onnx

            return load_onnx(path)
    raise ModelLoadError(f"{path} has no known suffix: models are .onnx, .pt2, .safetensors, .pt or .pth files")


def load_weights(path: Path) -> StateDict:
    """Return the state dict in a .safetensors, .pt or .pth file, whatever network it is of.

    Raises:
        ModelLoadError: the file is missing or broken, or holds something else.
    """
    _require_file(path)
    if path.suffix.lower() == ".safetensors":
        return _without_prefixes(_read_safetensors(path), path)
    held = _unwrap(_read_pickle(path, trust=False), path)
    if isinstance(held, nn.Module):
        raise ModelLoadError(f"{path} holds a whole model; its state_dict() is needed")
    return held


def _require_file(path: Path) -> None:
    if not path.exists():
        raise ModelLoadError(f"no such file: {path}")
    if not path.is_file():
        raise ModelLoadError(f"{path} is a folder; give the model file in it")
    if not os.access(path, os.R_OK):
        raise ModelLoadError(f"{path} may not be read: its permissions forbid it")


def _refuse_arch(path: Path, arch: str | None) -> None:
    if arch is not None:
        raise UsageError(f"{path} holds a whole model, not only its weights: leave --arch {arch} out")


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is no readable safetensors file: {one_line(error)}") from error


def _read_pickle(path: Path, *, trust: bool) -> Any:
    """Return what torch.save stored; only tensors and containers, unless the file is trusted."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if not start.startswith((_ZIP_START, _PICKLE_START)):
        raise ModelLoadError(f"{path} was not written by torch.save: it starts with {start!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript archives, which end in an error all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise _needs_trust(path, error) from error
    except BROKEN_FILE as error:
        raise _broken_pickle(path, error) from error
    logger.warning("%s is unpickled with --trust-pickle: it may run any code", path)
    with current_folder_importable():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (Exception, SystemExit) as error:  # the file's own code: it may raise anything
            raise ModelLoadError(f"unpickling {path} failed: {one_line(error)}") from error


def _needs_trust(path: Path, error: pickle.UnpicklingError) -> ModelLoadError:
    named = re.search(r"(?:GLOBAL|Unsupported class|class) ([\w.]+)", str(error))
    what = f" ({named[1]})" if named else ""
    return ModelLoadError(
        f"{path} is a pickle of more than tensors{what}, and unpickling it can run any code: pass --trust-pickle if "
        "you trust the file, or save the model with torch.export.save or its state_dict()"
    )


def _broken_pickle(path: Path, error: Exception) -> ModelLoadError:
    text = str(error)
    if "TorchScript" in text:
        return ModelLoadError(f"{path} is a TorchScript archive: save the original model with torch.export.save")
    return ModelLoadError(f"{path} is broken or cut short: {one_line(error)}")


def _unwrap(held: Any, path: Path) -> nn.Module | StateDict:
    """Return the module or state dict in what training scripts and wrappers put around it."""
    if isinstance(held, Mapping):
        for key in _NESTED_KEYS:
            if isinstance(held.get(key), nn.Module | Mapping):
                logger.info("%s: took the entry %r of the checkpoint", path, key)
                return _unwrap(held[key], path)
    if isinstance(held, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrap(held.module, path)
    if isinstance(held, nn.Module):
        return held
    if isinstance(held, Mapping) and held and all(isinstance(value, Tensor) for value in held.values()):
        return _without_prefixes(dict(held), path)
    raise ModelLoadError(f"{path} holds {_describe(held)}, neither a state dict nor a module")


def _describe(held: Any) -> str:
    if isinstance(held, Mapping):
        return f"a dict with the entries {', '.join(map(str, list(held)[:5]))}" if held else "an empty dict"
    return f"a {type(held).__name__}"


def _without_prefixes(state: StateDict, path: Path) -> StateDict:
    for prefix in _WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            logger.info("%s: took the prefix %r off the names of the parameters", path, prefix)
            return _without_prefixes({name.removeprefix(prefix): value for name, value in state.items()}, path)
    return state


def _build(state: StateDict, path: Path, arch: str | None) -> nn.Module:
    """Return the architecture with these weights; they are converted to float32."""
    if arch is None:
        raise ModelLoadError(
            f"{path} holds weights without a network: say what they belong to with --arch {ARCH_FORM}, "
            "e.g. --arch graphprune.models:resnet56"
        )
    model = resolve_arch(arch)
    own = model.state_dict()
    given = {own[name].data_ptr() for name in state if name in own}
    # A parameter that two modules share is stored once; old files have no counters in BatchNorm.
    missing = [
        name
        for name, value in own.items()
        if name not in state and value.data_ptr() not in given and not name.endswith(".num_batches_tracked")
    ]
    unknown = [name for name in state if name not in own]
    wrong = [
        f"{name} is {tuple(value.shape)} and must be {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        _few(what, names)
        for what, names in (("lacks", missing), ("has the unknown", unknown), ("has other shapes:", wrong))
        if names
    ]
    if problems:
        raise ModelLoadError(f"{path} does not fit --arch {arch}: it {'; it '.join(problems)}")
    model.load_state_dict(state, strict=False)
    return model


def _few(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{verb} {', '.join(names[:_MOST_NAMED])}{more}"

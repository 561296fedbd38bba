"""Slim models on disk: a torch.export archive, which needs no class of the user to be loaded again.

A state dict of a slim model fits no class that exists, and a pickle needs the class it was made from. An archive
holds graph and weights, is read without running code, and what comes back can be trained, cut and exported on.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from graphprune.formats.files import atomic_write_through_memory, refuse_overwrite
from graphprune.formats.pt2 import load_archive
from graphprune.passes.errors import CaptureError, ModelLoadError
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.program import export
from graphprune.passes.fx.quiet import kept_quiet
from graphprune.passes.fx.sizes import free_sizes
from graphprune.runtime.torch_mode import evaluation

__all__ = ["load", "save"]

logger = logging.getLogger("graphprune")

SUFFIX = ".pt2"


def save(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    example_inputs: tuple[Any, ...] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write `model`, in inference mode, as a torch.export archive and return its path.

    Args:
        model: a module, a captured module, or an exported program.
        path: where the file goes; its suffix must be .pt2.
        example_inputs: the arguments of one call; a captured module and an exported program bring their own.
        force: replace an existing file.

    Raises:
        OutputExistsError: the file exists and `force` is false.
        CaptureError: torch.export cannot capture the model.
    """
    final = Path(path)
    if final.suffix != SUFFIX:
        raise CaptureError(f"{final}: a saved model is a torch.export archive, so the name must end in {SUFFIX}")
    refuse_overwrite(final, force)
    program = model if isinstance(model, ExportedProgram) else _export(capture(model, example_inputs))
    with kept_quiet():
        atomic_write_through_memory(final, lambda file: torch.export.save(program, file))
    return final


def load(path: str | os.PathLike[str]) -> CapturedModule:
    """Return the model that `save` wrote, in inference mode; no code of the file is run.

    Raises:
        ModelLoadError: the file is missing, or is no torch.export archive of a model that this version reads.
    """
    source = Path(path)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "no such file"
        raise ModelLoadError(f"{source}: {what}; give a {SUFFIX} file that graphprune.save or torch.export.save wrote")
    if source.suffix == ".onnx":
        raise ModelLoadError(
            f"{source} is an ONNX file: open it with onnxruntime; graphprune.load reads {SUFFIX} files"
        )
    program = load_archive(source, trust=False)
    try:
        with kept_quiet():
            return capture(program)
    except CaptureError as error:
        raise ModelLoadError(f"{source}: {error}") from error


def _export(model: CapturedModule) -> ExportedProgram:
    with evaluation(model):
        program, problem = export(model, model.example_inputs)
    kept = sum(map(len, free_sizes(program.graph)))
    if problem or kept < sum(map(len, free_sizes(model.graph))):
        what = "one height and width, others are" if kept else "one batch size, others are"
        logger.warning("the saved model takes %s not possible: %s", what, problem or "its code fixes them")
    return program

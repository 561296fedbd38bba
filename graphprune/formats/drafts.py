"""A slim ONNX file before it stands under its name: in the form of the file that it was made from, and valid."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.formats.onnx_cost import size_of
from graphprune.formats.onnx_files import copied, written
from graphprune.formats.sparse_storage import store_sparse_like
from graphprune.formats.validity import invalidity
from graphprune.passes.errors import VerificationError
from graphprune.passes.onnx.wire import outline
from graphprune.runtime.onnx_session import external_files

__all__ = ["drafted", "refuse_invalid"]

logger = logging.getLogger("graphprune")


@contextlib.contextmanager
def drafted(model: ir.Model, source: Path, target: Path, force: bool, folder: Path, is_cut: bool) -> Iterator[Path]:
    """The model as a file that becomes `target`, in the form that the source has: weights sparse, or in another file.

    Where nothing was cut and the file would have grown (local functions written out, say), it is the source as it came.
    """
    holders = external_files(onnx.load_model_from_string(outline(source))) - {os.path.realpath(source)}
    outside = bool(holders)  # of the weights; an outline refers to those inside as to the file itself
    if not is_cut:
        trial = folder / f"trial-{target.name}"
        with written(model, trial, outside=outside) as path:
            store_sparse_like(source, path)
        if size_of(trial) > size_of(source):
            with copied(source, target, force) as draft:
                yield draft
            return
    with written(model, target, force, outside=outside) as draft:
        store_sparse_like(source, draft)
        yield draft


def refuse_invalid(draft: Path, source: Path, name: str) -> None:
    """Raise VerificationError unless the file is valid ONNX, or the one that it comes from is not either."""
    problem = invalidity(draft)
    if problem and not invalidity(source):
        raise VerificationError(f"{name}: the slim file would be no valid ONNX: {problem}")
    if problem:
        logger.warning("%s is not valid ONNX, and so is what is made of it: %s", source, problem)

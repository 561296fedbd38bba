"""Writing ONNX files so that nothing half-written or unchecked ever stands under a final name."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphprune.formats.files import atomic_write, atomic_write_together, refuse_overwrite, write_error
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx import wire

#: Protobuf cannot hold 2 GB; weights of this size and more go into a second file.
EXTERNAL_DATA_BYTES = (1 << 31) - (1 << 24)


@contextlib.contextmanager
def written(model: ir.Model, final: Path, force: bool = True) -> Iterator[Path]:
    """Yield a temporary file with the model; it becomes `final` when the block ends well.

    Weights are streamed, from wherever they are. Those of 2 GB or more go into a second file beside it, `final` with
    ".data" appended.

    Args:
        model: what to write.
        final: the file's name.
        force: overwrite the second file, where there is need of one; the first is overwritten in any case.

    Raises:
        OutputExistsError: the second file exists and `force` is false.
        GraphPruneError: the files cannot be written (disk full, no permission).
        UnsupportedModelError: the model holds something that an ONNX file cannot.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    del weights
    if size < EXTERNAL_DATA_BYTES:
        with atomic_write(final) as temporary:
            with _told(final):
                wire.write(model, temporary)
            yield temporary
        return
    data = final.with_name(f"{final.name}.data")
    refuse_overwrite(data, force)
    with atomic_write_together(data, final) as names, folder_beside(final) as folder:
        draft = folder / final.name  # The model refers to its data by name, so the names are the final ones.
        with _told(final):
            ir.save(model, draft, external_data=data.name)
        yield draft
        for part, name in zip((data, final), names, strict=True):
            (folder / part.name).replace(name)


def write(model: ir.Model, final: Path) -> None:
    """Write a model; see `written`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(written(model, final))


@contextlib.contextmanager
def folder_beside(final: Path) -> Iterator[Path]:
    """A temporary folder on the disk that the file will be on; the system's own is often memory.

    Raises:
        GraphPruneError: there cannot be one.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{final.stem}.", dir=final.parent)
    except OSError as error:
        raise write_error(error, final) from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def _told(final: Path) -> Iterator[None]:
    try:
        yield
    except ir.serde.SerdeError as error:  # something in it that no message can hold, like text that is none
        raise UnsupportedModelError(f"{final.name}: cannot be written: {error.__cause__ or error}") from error

"""Writing ONNX files so that nothing half-written or unchecked ever stands under a final name."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from graphprune.formats.files import atomic_write, atomic_write_together, refuse_overwrite, write_error
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx import wire
from graphprune.runtime.onnx_session import external_files

#: Protobuf cannot hold 2 GB; weights of this size and more go into a second file.
EXTERNAL_DATA_BYTES = (1 << 31) - (1 << 24)

#: Where weights lie in a second file, smaller ones stay in the first.
OUTSIDE_BYTES = 1 << 8


@contextlib.contextmanager
def written(model: ir.Model, final: Path, force: bool = True, *, outside: bool = False) -> Iterator[Path]:
    """Yield a temporary file with the model; it becomes `final` when the block ends well.

    Weights are streamed, from wherever they are. Those of 2 GB or more go into a second file beside it, `final` with
    ".data" appended.

    Args:
        model: what to write.
        final: the file's name.
        force: overwrite the second file, where there is need of one; the first is overwritten in any case.
        outside: put weights into a second file, whatever their size.

    Raises:
        OutputExistsError: the second file exists and `force` is false.
        GraphPruneError: the files cannot be written (disk full, no permission).
        UnsupportedModelError: the model holds something that an ONNX file cannot.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    sizes = [tensor.nbytes for tensor in weights if tensor is not None]
    del weights
    if sum(sizes) < EXTERNAL_DATA_BYTES and not (outside and max(sizes, default=0) > OUTSIDE_BYTES):
        with atomic_write(final) as temporary:
            with _told(final):
                wire.write(model, temporary)
            yield temporary
        return
    data = final.with_name(f"{final.name}.data")
    refuse_overwrite(data, force)
    with atomic_write_together(data, final) as names, folder_beside(final) as folder:
        draft = folder / final.name  # The model refers to its data by name, so the names are the final ones.
        with _told(final), wire.without_packed(model) as packed:
            ir.save(model, draft, external_data=data.name, size_threshold_bytes=OUTSIDE_BYTES)
        wire.put_in(draft, packed)
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


@contextlib.contextmanager
def copied(source: Path, final: Path, force: bool = True) -> Iterator[Path]:
    """Yield a temporary copy of a file, byte by byte but for the names of others that hold its weights.

    It becomes `final` when the block ends well. Weights in other files go with it, into files beside it.

    Args:
        source: the file.
        final: the name of its copy.
        force: overwrite the files of weights; the first is overwritten in any case.

    Raises:
        OutputExistsError: a file of weights exists and `force` is false.
        GraphPruneError: the files cannot be written (disk full, no permission).
    """
    model = onnx.load(source, load_external_data=False)
    held = sorted(external_files(model))
    data = [final.with_name(f"{final.name}.data{number or ''}") for number, _ in enumerate(held)]
    for path in data:
        refuse_overwrite(path, force)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in held:
                entry.value = data[held.index(entry.value)].name
    with atomic_write_together(*data, final) as names, folder_beside(final) as folder:
        draft = folder / final.name
        for location, path in zip(held, data, strict=True):
            shutil.copyfile(source.parent / location, folder / path.name)
        if held:
            draft.write_bytes(model.SerializeToString())
        else:
            shutil.copyfile(source, draft)
        yield draft
        for part, name in zip((*data, final), names, strict=True):
            (folder / part.name).replace(name)

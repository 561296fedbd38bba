"""Writing ONNX files so that nothing half-written or unchecked ever stands under a final name."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphprune.files import atomic_write
from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.onnx import wire

#: Protobuf cannot hold 2 GB; weights of this size and more go into a second file.
EXTERNAL_DATA_BYTES = (1 << 31) - (1 << 24)


@contextlib.contextmanager
def written(model: ir.Model, final: Path) -> Iterator[Path]:
    """Yield a temporary file with the model; it becomes `final` when the block ends well.

    Weights are streamed, from wherever they are. Those of 2 GB or more go into a second file beside it, `final` with
    ".data" appended.

    Raises:
        UnsupportedModelError: the model holds something that an ONNX file cannot.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    del weights
    if size < EXTERNAL_DATA_BYTES:
        with atomic_write(final) as temporary:
            try:
                wire.write(model, temporary)
            except ir.serde.SerdeError as error:  # something in it that no message can hold, like text that is none
                raise UnsupportedModelError(f"{final.name}: cannot be written: {error.__cause__ or error}") from error
            yield temporary
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.stem}.", dir=final.parent) as folder:
        draft = Path(folder) / final.name  # The model refers to its data by name, so the names are the final ones.
        ir.save(model, draft, external_data=f"{final.name}.data")
        yield draft
        for part in (draft.with_name(f"{final.name}.data"), draft):
            with atomic_write(final.with_name(part.name)) as temporary:
                part.replace(temporary)

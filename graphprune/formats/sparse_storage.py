"""Weights that are mostly zero, stored in an ONNX file as what is not: sparse initializers.

    dense: 4 bytes a weight       sparse: 4 + 8 bytes a weight that is not zero (its value, and its index as int64)

Onnxruntime writes them out when it loads the file, so only the file gets smaller, no latency. Whether it loads this
file, and what comes out, is tried before the file is replaced.

Source: ONNX IR specification, SparseTensorProto; onnxruntime reads it since 1.5.
"""

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.formats.files import atomic_write
from graphprune.passes.errors import GraphPruneError
from graphprune.passes.onnx.wire import outline
from graphprune.verification.verify import compare

__all__ = ["StoredSparse", "is_smaller_sparse", "store_sparse", "store_sparse_like"]

logger = logging.getLogger("graphprune")

_INDEX = np.dtype(np.int64).itemsize


@dataclass(frozen=True)
class StoredSparse:
    """How a file stores its weights.

    Attributes:
        sparse: names of the weights that are stored sparse.
        bytes_dense: size of the file with all weights written out.
        bytes: its size as it is.
        problem: why nothing is stored sparse although it would be smaller, or "".
    """

    sparse: tuple[str, ...]
    bytes_dense: int
    bytes: int
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def store_sparse(path: Path, inputs: Any) -> StoredSparse:
    """Store the weights of a file sparse where that makes it smaller and onnxruntime computes the same with it.

    The file keeps its name; if it would not become smaller, or not be loaded, it stays as it is.

    Args:
        path: the file.
        inputs: what both forms are run on, an array with the samples along dimension 0.
    """
    before = path.stat().st_size
    draft, names = _sparse(path)
    if not names:
        return StoredSparse((), before, before)
    try:
        problem = "" if compare(path, draft, inputs).equal else "it computes something else so"
    except GraphPruneError as error:
        problem = str(error)
    if problem:
        logger.warning("%s: weights that are mostly zero are stored dense: %s", path.name, problem)
        return StoredSparse((), before, before, problem)
    with atomic_write(path) as temporary:
        temporary.write_bytes(draft)
    return StoredSparse(tuple(names), before, len(draft))


def store_sparse_like(source: str | os.PathLike[str], path: Path) -> None:
    """Store the weights of a file sparse, where that is smaller and `source` does so too; nothing is compared."""
    if onnx.load_model_from_string(outline(source)).graph.sparse_initializer:
        draft, names = _sparse(path)
        if names:
            path.write_bytes(draft)


def _sparse(path: Path) -> tuple[bytes, list[str]]:
    """The content of a file with sparse weights, and their names; none where it would not be smaller."""
    model = onnx.load(path, load_external_data=False)
    names = _make_sparse(model.graph)
    draft = model.SerializeToString() if names else b""
    return (draft, names) if names and len(draft) < path.stat().st_size else (b"", [])


def _make_sparse(graph: onnx.GraphProto) -> list[str]:
    """Replace initializers, in place, that are smaller sparse; their names."""
    names, kept = [], []
    for tensor in graph.initializer:
        array = _floats(tensor)
        if array is None or not is_smaller_sparse(int(np.count_nonzero(array)), array.size, array.itemsize):
            kept.append(tensor)
            continue
        at = np.flatnonzero(array)
        sparse = onnx.helper.make_sparse_tensor(
            numpy_helper.from_array(array.ravel()[at], tensor.name),
            numpy_helper.from_array(at.astype(np.int64), f"{tensor.name}_indices"),
            list(array.shape),
        )
        graph.sparse_initializer.append(sparse)
        names.append(tensor.name)
    if names:
        del graph.initializer[:]
        graph.initializer.extend(kept)
    return names


def is_smaller_sparse(left: int, weights: int, itemsize: int = 4) -> bool:
    """Is a weight with so many elements, of which some are `left`, smaller when it is stored sparse?"""
    return left * (itemsize + _INDEX) < weights * itemsize


def _floats(tensor: onnx.TensorProto) -> np.ndarray | None:
    """The numbers of a weight that lies in the file itself."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    array = numpy_helper.to_array(tensor)
    return array if array.ndim >= 1 and array.size else None

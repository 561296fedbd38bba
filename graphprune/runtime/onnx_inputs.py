"""What ONNX models are fed with: their inputs described, full shapes for free sizes, random arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graphprune.passes.errors import ModelLoadError, UsageError

__all__ = [
    "NUMERIC_TYPES",
    "InputSpec",
    "batch_of",
    "input_shapes",
    "input_specs",
    "random_inputs",
    "refuse_other_shapes",
    "specs_of",
]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: `dims` holds a number where the size is fixed, else the name of the size or None."""

    name: str
    dtype: type[np.generic]
    dims: tuple[int | str | None, ...]


def input_specs(session: ort.InferenceSession, name: str = "model") -> tuple[InputSpec, ...]:
    """Describe the inputs that a caller has to feed.

    Raises:
        ModelLoadError: An input is no dense tensor of numbers.
    """
    specs = []
    for item in session.get_inputs():
        if item.type not in _DTYPES:
            raise ModelLoadError(f"{name}: input '{item.name}' is a {item.type}; only dense tensors of numbers work")
        specs.append(InputSpec(item.name, _DTYPES[item.type], tuple(item.shape or ())))
    return tuple(specs)


def specs_of(model: ir.Model) -> tuple[InputSpec, ...]:
    """Describe the inputs that a caller has to feed, as the file states them: nothing need be able to run it.

    Inputs that are no tensors of a known rank are left out.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None or value.dtype in (None, ir.DataType.STRING):
            continue
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        specs.append(InputSpec(value.name or "", value.dtype.numpy().type, dims))
    return tuple(specs)


def input_shapes(
    specs: Sequence[InputSpec],
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str = "model",
) -> dict[str, tuple[int, ...]]:
    """Return a full shape for every input: sizes of the file, `batch` for a free first dimension, or `shapes`.

    A key of `shapes` is an input's name; the key "" stands for the only input. A first size of 0 leaves the batch open.

    Raises:
        UsageError: A size is not in the file and not in `shapes`, or the two contradict each other.
    """
    asked = _by_input(specs, shapes, name)
    return {spec.name: _full_shape(spec, asked.get(spec.name), batch, name) for spec in specs}


def refuse_other_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[Any]], name: str = "model") -> None:
    """Do nothing where `shapes` are those of inputs of the file, as far as it states sizes; see `input_shapes`.

    Raises:
        UsageError: They contradict the file, or name an input that it does not have.
    """
    asked = _by_input(specs, shapes, name)
    for spec in specs:
        if spec.name in asked:
            _full_shape(spec, asked[spec.name], 1, name)


def batch_of(
    specs: Sequence[InputSpec],
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str = "model",
) -> int:
    """Return the batch that a model is run at: `batch`, what the file or `shapes` say, or else 1.

    It is the first size of the first input, and of every other input whose first size has the same name.

    Raises:
        UsageError: They contradict each other.
    """
    asked = _by_input(specs, shapes, name)
    if not specs or not specs[0].dims:
        return batch or 1
    free = specs[0].dims[0]
    if isinstance(free, int):
        if batch not in (None, free):
            raise UsageError(f"{name}: has a fixed batch of {free}, {batch} was asked for; give a batch of {free}")
        return free
    stated = [
        (spec.name, asked[spec.name])
        for at, spec in enumerate(specs)
        if asked.get(spec.name) and (at == 0 or (free is not None and spec.dims[:1] == (free,)))
    ]
    for own, shape in stated:
        if batch is not None and shape[0] not in (0, batch):
            raise UsageError(
                f"{name}: the shape {_dims(shape)} of input '{own}' is for a batch of {shape[0]}, {batch} was asked "
                f"for; {_dims((None, *shape[1:]))} leaves it open"
            )
        batch = shape[0] or batch
    return batch or 1


def random_inputs(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, np.ndarray]:
    """Return seeded inputs: normal for floats, 0..255 for bytes, 0 and 1 for other integers (they may be indices).

    Raises:
        UsageError: An input does not fit into memory.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        shape = tuple(shapes[spec.name])
        try:
            if issubclass(spec.dtype, np.floating):
                feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            else:
                feeds[spec.name] = rng.integers(0, 256 if spec.dtype is np.uint8 else 2, shape).astype(spec.dtype)
        except MemoryError as error:
            raise UsageError(f"input '{spec.name}' of {_dims(shape)} does not fit into memory") from error
    return feeds


def _by_input(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]] | None, name: str
) -> dict[str, Sequence[int]]:
    """The shapes by the inputs' own names."""
    asked = dict(shapes or {})
    if "" in asked and len(specs) == 1:
        asked[specs[0].name] = asked.pop("")
    unknown = set(asked) - {spec.name for spec in specs}
    if unknown:
        known = ", ".join(f"'{spec.name}'" for spec in specs)
        raise UsageError(f"{name}: no input is called '{min(unknown)}'; it has {known}")
    return asked


def _full_shape(spec: InputSpec, asked: Sequence[int] | None, batch: int, name: str) -> tuple[int, ...]:
    if asked is not None:
        first = spec.dims[0] if spec.dims and isinstance(spec.dims[0], int) else batch
        full = (asked[0] or first, *asked[1:]) if asked else ()
        fits = len(full) == len(spec.dims) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.dims, full, strict=True)
        )
        if not fits and spec.dims:
            hint = f"; the batch comes first, as in 1x{_dims(asked)}" if len(asked) == len(spec.dims) - 1 else ""
            raise UsageError(
                f"{name}: input '{spec.name}' is {_dims(spec.dims)}, the shape given is {_dims(asked)}{hint}"
            )
        return full
    shape = tuple(batch if at == 0 and not isinstance(dim, int) else dim for at, dim in enumerate(spec.dims))
    free = [dim for dim in shape if not isinstance(dim, int)]
    if free:
        example = _dims(tuple(dim if isinstance(dim, int) else 224 for dim in shape))
        raise UsageError(
            f"{name}: input '{spec.name}' is {_dims(spec.dims)}; its shape must be given, as in {spec.name}:{example}"
        )
    return tuple(size for size in shape if isinstance(size, int))


def _dims(dims: Sequence[int | str | None]) -> str:
    return "x".join("?" if dim in (None, 0) else str(dim) for dim in dims) or "a scalar"


_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


#: What onnxruntime calls tensors that come out as arrays of numbers, and which.
NUMERIC_TYPES: Mapping[str, type[np.generic]] = _DTYPES

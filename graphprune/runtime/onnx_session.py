"""Opening ONNX models in onnxruntime: one way of doing it, with errors in one line and inputs described.

Every part that runs a model (benchmark, verification, cost, export) opens it here, so that a broken file,
an unknown input size or a missing execution provider is reported in the same words everywhere.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from graphprune.passes.errors import ModelLoadError, UsageError
from graphprune.passes.onnx.wire import outline
from graphprune.pinning import worker_affinities

__all__ = [
    "CPU",
    "NUMERIC_TYPES",
    "RUNTIME_ERRORS",
    "InputSpec",
    "OnnxSource",
    "batch_of",
    "input_shapes",
    "input_specs",
    "label_of",
    "load_proto",
    "one_line",
    "open_session",
    "random_inputs",
    "refuse_other_shapes",
    "require_provider",
    "with_outputs",
]

OnnxSource = str | os.PathLike[str] | bytes

# Onnxruntime's exceptions have no common base but Exception.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)
CPU = "CPUExecutionProvider"

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

#: What onnxruntime calls tensors that come out as arrays of numbers.
NUMERIC_TYPES = frozenset(_DTYPES)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: `dims` holds a number where the size is fixed, else the name of the size or None."""

    name: str
    dtype: type[np.generic]
    dims: tuple[int | str | None, ...]


def open_session(
    source: OnnxSource,
    *,
    threads: int = 1,
    optimize: bool = True,
    provider: str = CPU,
    name: str | None = None,
    saturates: bool = True,
    mapped: bool = False,
    profile: str | None = None,
    optimized: str | None = None,
    processors: Sequence[int] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX model for inference.

    Args:
        source: Path of the file, or its content.
        threads: Threads inside one operator; operators run one after another.
        optimize: Onnxruntime's full graph optimization, or none at all.
        provider: Execution provider; operators it lacks run on the CPU.
        name: What to call the model in an error; by default its path.
        saturates: Sums of products of signed and unsigned bytes may saturate, as they do for speed on x64 processors
            without VNNI. Without, they are exact; only an optimized graph can do that.
        mapped: For a few runs of a file: its weights are mapped from where they lie instead of being parsed, copied
            and packed for the kernels. Measured on ResNet50 (102 MB), unoptimized: open in 0.01 s instead of 0.29 s,
            with 100 MB less memory of its own.
        profile: Let onnxruntime note the time of every kernel, in a file whose name begins like this.
        optimized: Let onnxruntime write the graph that it runs, as an ONNX file.
        processors: Where its threads stay: the first is the calling thread's, which is not moved here.

    Raises:
        ModelLoadError: The file is missing, is no ONNX model, or onnxruntime cannot run it.
        UsageError: This build of onnxruntime does not have the provider, or `threads` is below 1.
    """
    label = name or label_of(source)
    require_provider(provider)
    if threads < 1:
        raise UsageError(f"{threads} threads asked for; at least 1 is needed")
    payload = source if isinstance(source, bytes) else _readable(source)
    providers = [provider] if provider == CPU else [provider, CPU]
    settings = (threads, optimize, saturates, profile, optimized, processors)
    if mapped and isinstance(payload, str):
        with suppress(*RUNTIME_ERRORS, OSError):  # what cannot be mapped is read as usual, or reported below
            return _mapped_session(Path(payload), _options(*settings), providers)
    try:
        # without its fallback, which prints to stdout and tries the same again
        options = _options(*settings)
        return ort.InferenceSession(payload, options, providers=providers, enable_fallback=0)
    except RUNTIME_ERRORS as error:
        raise ModelLoadError(f"{label}: onnxruntime cannot load it: {one_line(error)}") from error


def require_provider(provider: str) -> None:
    """Raises: UsageError: this build of onnxruntime does not have the execution provider."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UsageError(f"execution provider {provider} is not in this onnxruntime; it has {', '.join(available)}")


def _options(
    threads: int,
    optimize: bool,
    saturates: bool,
    profile: str | None,
    optimized: str | None,
    processors: Sequence[int] | None,
) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # Errors arrive as exceptions; the log would say them a second time.
    # Workers spin between runs by default, for up to a second on some machines. With two sessions in one process
    # those of the idle one take the cores of the other (seen: a p90 of 4.7 ms instead of 0.7). Stopping the spin
    # when a run ends keeps it within the run, where it belongs to the latency.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if processors is not None and threads > 1:
        options.add_session_config_entry("session.intra_op_thread_affinities", worker_affinities(processors))
    if not saturates:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return options


def _mapped_session(path: Path, options: ort.SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    """A session on the file's outline, whose weights are external data that lies in the file itself."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(path.parent))
    # Packing pays in the long run, and holds a second copy of every matrix.
    options.add_session_config_entry("session.disable_prepacking", "1")
    content = outline(path, location=path.name)
    return ort.InferenceSession(content, options, providers=list(providers), enable_fallback=0)


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


def label_of(source: OnnxSource) -> str:
    """Return what to call a model in a message."""
    return "ONNX model" if isinstance(source, bytes) else os.fspath(source)


def load_proto(source: OnnxSource) -> onnx.ModelProto:
    """Parse an ONNX model, with its external data if it has any.

    Raises:
        ModelLoadError: The file is missing or is no ONNX model.
    """
    label = label_of(source)
    try:
        model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load_model(_readable(source))
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelLoadError(f"{label}: not a readable ONNX model: {one_line(error)}") from error
    if not model.ir_version or not model.graph.output:
        raise ModelLoadError(f"{label}: not an ONNX model, it holds no graph with outputs")
    return model


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Serialize a copy of `model` that returns the values `names` besides its own outputs.

    Raises:
        ModelLoadError: The model is too large (2 GB) to be handled in memory.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    # Onnxruntime infers the type of an output that states none.
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        return copy.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise ModelLoadError(f"the model is too large to look into its values: {one_line(error)}") from error


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold weights of a model, as it states them: relative to its own folder."""
    return {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def one_line(error: BaseException) -> str:
    """Return the message of an exception without line breaks and without onnxruntime's code prefix."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split())) or type(error).__name__


def _full_shape(spec: InputSpec, asked: Sequence[int] | None, batch: int, name: str) -> tuple[int, ...]:
    if asked is not None:
        first = spec.dims[0] if spec.dims and isinstance(spec.dims[0], int) else batch
        full = (asked[0] or first, *asked[1:]) if asked else ()
        fits = len(full) == len(spec.dims) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.dims, full, strict=True)
        )
        if not fits and spec.dims:
            raise UsageError(f"{name}: input '{spec.name}' is {_dims(spec.dims)}, the shape given is {_dims(asked)}")
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


def _readable(source: str | os.PathLike[str]) -> str:
    path = Path(source)
    if not path.exists():
        raise ModelLoadError(f"{path}: no such file")
    if not path.is_file():
        raise ModelLoadError(f"{path}: is a folder, an .onnx file is needed")
    return os.fspath(path)

"""Opening ONNX models in onnxruntime: one way of doing it, with errors in one line.

Every part that runs a model (benchmark, verification, cost, export) opens it here, so that a broken file,
an unknown input size or a missing execution provider is reported in the same words everywhere.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from graphprune.passes.channels.registry import kernel_libraries
from graphprune.passes.errors import ModelLoadError, RuleError, UsageError
from graphprune.passes.onnx.model import free_negative_sizes
from graphprune.passes.onnx.wire import outline
from graphprune.runtime.pinning import worker_affinities

__all__ = [
    "CPU",
    "RUNTIME_ERRORS",
    "OnnxSource",
    "label_of",
    "load_proto",
    "one_line",
    "open_session",
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
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


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
    outputs: Sequence[str] = (),
    folder: Path | None = None,
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
        outputs: Values inside the graph that it returns besides its own outputs.
        folder: Where the weights lie to which a content refers.

    Raises:
        ModelLoadError: The file is missing, is no ONNX model, or onnxruntime cannot run it.
        UsageError: This build of onnxruntime does not have the provider, or `threads` is below 1.
    """
    label = name or label_of(source)
    require_provider(provider)
    if threads < 1:
        raise UsageError(f"{threads} threads asked for; at least 1 is needed")
    payload = source if isinstance(source, bytes) else _readable(source)
    if outputs:
        payload, folder = _exposing(payload, outputs, label)
    providers = [provider] if provider == CPU else [provider, CPU]
    settings = (threads, optimize, saturates, profile, optimized, processors)
    if mapped and isinstance(payload, str):
        with suppress(*RUNTIME_ERRORS, OSError):  # what cannot be mapped is read as usual, or reported below
            return _mapped_session(Path(payload), _options(*settings), providers)
    try:
        return _session(payload, _settled(settings, folder, mapped), providers)
    except RUNTIME_ERRORS as error:
        problem: Exception = error
    if not saturates and isinstance(payload, str):
        # Seen in 1.32: it fails to make weights exact that share a zero point ("Attempt to replace ...").
        with suppress(*RUNTIME_ERRORS, ModelLoadError):
            return _session(with_own_literals(load_proto(payload)), _options(*settings), providers)
    if _are_brought_by_packages():  # those of installed packages, which may be what was missing
        with suppress(*RUNTIME_ERRORS):
            return _session(payload, _settled(settings, folder, mapped), providers)
    missing = "is not a registered function/op" in str(problem)
    hint = "; register_rule(..., kernels=...) names the library that has it" if missing else ""
    raise ModelLoadError(f"{label}: onnxruntime cannot load it: {one_line(problem)}{hint}") from problem


def _settled(settings: tuple[Any, ...], folder: Path | None, mapped: bool) -> ort.SessionOptions:
    """Options with the folder that weights lie in, and without packed copies of them where they are mapped."""
    options = _options(*settings)
    if folder is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(folder))
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _session(source: str | bytes, options: ort.SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    """A session without onnxruntime's fallback, which prints to stdout and tries the same again."""
    return ort.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


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
    for library in kernel_libraries():
        _load_kernels(options, library)
    return options


def _are_brought_by_packages() -> bool:
    """Are there kernels since the rules of installed packages were imported, here and now?"""
    from graphprune.passes.channels.rules import TABLE  # the rules, which a file that runs need not have

    return TABLE.load_installed() and bool(kernel_libraries())


def _load_kernels(options: ort.SessionOptions, library: str) -> None:
    """Raises: RuleError: the library that a rule names is no library of operators."""
    try:
        options.register_custom_ops_library(library)
    except RUNTIME_ERRORS as error:
        raise RuleError(f"{library}: onnxruntime finds no operators in it: {one_line(error)}") from error


def _mapped_session(path: Path, options: ort.SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    """A session on the file's outline, whose weights are external data that lies in the file itself."""
    options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(path.parent))
    # Packing pays in the long run, and holds a second copy of every matrix.
    options.add_session_config_entry("session.disable_prepacking", "1")
    content = outline(path, location=path.name)
    return _session(content, options, providers)


def _exposing(payload: str | bytes, names: Sequence[str], label: str) -> tuple[bytes, Path | None]:
    """The content of a model that returns some values besides; weights of a file stay where they lie."""
    if isinstance(payload, bytes):
        return with_outputs(load_proto(payload), names), None
    try:
        content = onnx.load_model_from_string(outline(payload, location=Path(payload).name))
    except (DecodeError, ValueError) as error:
        raise ModelLoadError(f"{label}: not a readable ONNX model: {one_line(error)}") from error
    return with_outputs(content, names), Path(payload).parent


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
    free_negative_sizes(model)
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
    return _serialized(copy)


def _serialized(model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise ModelLoadError(f"the model is too large to look into its values: {one_line(error)}") from error


def with_own_literals(model: onnx.ModelProto) -> bytes:
    """Serialize a copy of `model` in which every reader of a stored tensor has a copy of its own.

    Raises:
        ModelLoadError: The model is too large (2 GB) to be handled in memory.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        for at, name in enumerate(node.input):
            if name in stored and name in read:
                own = copy.graph.initializer.add()
                own.CopyFrom(stored[name])
                own.name = node.input[at] = f"{name}/{number}/{at}"
            read.add(name)
    return _serialized(copy)


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
    """Return the message of an exception without line breaks, and without onnxruntime's code and path before it.

    Who says what went wrong says of which file; the one that onnxruntime was given may be a temporary one.
    """
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return re.sub(r"^Load model from .+? failed:\s*", "", text) or type(error).__name__


def _readable(source: str | os.PathLike[str]) -> str:
    path = Path(source)
    if not path.exists():
        raise ModelLoadError(f"{path}: no such file")
    if not path.is_file():
        raise ModelLoadError(f"{path}: is a folder, an .onnx file is needed")
    return os.fspath(path)

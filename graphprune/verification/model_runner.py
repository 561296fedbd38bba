"""Running a model on arrays, the same way for an ONNX file and for a torch module.

Verification asks two things of a model: its outputs, and the values inside its graph by name. Torch is
imported only when a torch module is given.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import onnx

from graphprune.passes.errors import DataError, UnsupportedModelError
from graphprune.runtime.onnx_inputs import NUMERIC_TYPES, InputSpec, input_specs
from graphprune.runtime.onnx_session import (
    RUNTIME_ERRORS,
    OnnxSource,
    label_of,
    load_proto,
    one_line,
    open_session,
    with_outputs,
)

__all__ = ["Model", "Runner", "captured_batch", "describe_inputs", "open_runner"]

Model = Any
"""Path or content of an ONNX file, a `torch.nn.Module` or an `ExportedProgram`."""

Arrays = Sequence[np.ndarray]


class Runner(Protocol):
    """A model that takes arrays by position.

    Attributes:
        label: What to call the model in a message.
        output_names: Names of the outputs; None until they are known, or when they have none.
        fixed_batch: The only batch size that the model takes, or None.
    """

    label: str
    output_names: tuple[str, ...] | None
    fixed_batch: int | None

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs."""

    def answer(self, inputs: Arrays) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """Return the outputs, and by name the inputs and those values inside that were asked for on opening."""

    def value_spans(self) -> dict[str, tuple[int, int]]:
        """Return the values inside the graph by name, in the order of computation; empty when they have no names.

        With each stand the number of the operator that gives it, and of the last one that reads it (beyond the last
        operator if it is an output).
        """

    def values(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the numeric values of the graph among `names`."""


def open_runner(
    model: Model,
    *,
    label: str | None = None,
    optimize: bool = True,
    threads: int = 1,
    watched: Sequence[str] = (),
    mapped: bool = False,
) -> Runner:
    """Return a runner of `model`.

    Args:
        model: a file or its content, or a torch module.
        label: what to call it.
        optimize: whether onnxruntime optimizes the graph.
        threads: of onnxruntime.
        watched: values inside an ONNX graph, none of its inputs and outputs, that `answer` gives besides.
        mapped: for a few runs alone; see `open_session`.

    Raises:
        ModelLoadError: An ONNX file is missing, broken, or beyond this onnxruntime.
        UnsupportedModelError: `model` is of no kind that can be run.
    """
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        return _OnnxRunner(model, label, optimize, threads, watched, mapped)
    # Whoever holds a torch module has imported torch; nobody else pays for it here.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        from graphprune.passes.fx.capture import module_of

        return _TorchRunner(module_of(model), label or "the exported program")
    if torch is not None and isinstance(model, torch.nn.Module):
        return _TorchRunner(model, label or f"the torch module {type(model).__name__}")
    raise UnsupportedModelError(f"{type(model).__name__} is neither an ONNX model nor a torch module")


def describe_inputs(model: Model) -> tuple[InputSpec, ...] | None:
    """Return the inputs that a model takes; None for a torch module that has not been captured.

    Raises:
        ModelLoadError: An ONNX file is missing or broken.
    """
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        return input_specs(open_session(model), label_of(model))
    stated = getattr(model, "input_shapes", None)
    if stated is not None and hasattr(model, "input_types"):  # an ONNX graph as a module
        return tuple(
            InputSpec(name, kind.numpy().type, dims)
            for name, kind, dims in zip(model.input_names, model.input_types, stated, strict=True)
        )
    graph: Any = getattr(model, "graph", None)
    if not isinstance(graph, _graph_type()):  # a network of one's own may call something else so
        return None
    signature = getattr(model, "graph_signature", None)
    names = None if signature is None else set(signature.user_inputs)
    specs = []
    for node in graph.nodes:
        example = node.meta.get("val") if node.op == "placeholder" and (names is None or node.name in names) else None
        if example is not None and hasattr(example, "shape"):
            dims = tuple(size if isinstance(size, int) else str(size) for size in example.shape)
            # Numpy spells the types that a model's input can have as torch does.
            specs.append(InputSpec(node.name, np.dtype(str(example.dtype).removeprefix("torch.")).type, dims))
    return tuple(specs) or None


def _graph_type() -> Any:
    """What the graph of a captured model is; nothing is one where torch has not been imported."""
    torch = sys.modules.get("torch")
    return () if torch is None else torch.fx.Graph


class _OnnxRunner:
    def __init__(
        self,
        source: OnnxSource,
        label: str | None,
        optimize: bool,
        threads: int,
        watched: Sequence[str],
        mapped: bool,
    ) -> None:
        self.label = label or label_of(source)
        self._source = source
        self._threads = threads
        self._session = open_session(
            source, optimize=optimize, threads=threads, name=self.label, outputs=watched, mapped=mapped
        )
        self._specs = input_specs(self._session, self.label)
        names = tuple(item.name for item in self._session.get_outputs())
        self._watched = tuple(watched)
        self.output_names: tuple[str, ...] | None = names[: len(names) - len(watched)]
        first = self._specs[0].dims[:1] if self._specs else ()
        self.fixed_batch = first[0] if first and isinstance(first[0], int) else None

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return self._run(self._session, list(self.output_names or ()), inputs)

    def answer(self, inputs: Arrays) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        names = [*(self.output_names or ()), *self._watched]
        found = dict(zip(names, self._run(self._session, names, inputs), strict=True))
        outputs = [found[name] for name in self.output_names or ()]
        given = {spec.name: self._fit(spec, array) for spec, array in zip(self._specs, inputs, strict=True)}
        return outputs, {**found, **given}

    def value_spans(self) -> dict[str, tuple[int, int]]:
        graph = self._proto.graph
        born = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
        dies = {name: at for at, node in enumerate(graph.node) for name in _read_by(node)}
        dies.update((output.name, len(graph.node)) for output in graph.output)
        return {name: (at, dies.get(name, at)) for name, at in born.items()}

    def values(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        exposed = with_outputs(self._proto, names)
        # Unoptimized: what is looked for is a difference of the graphs, and fusions would be undone anyway.
        session = open_session(exposed, optimize=False, threads=self._threads, name=self.label)
        numeric = {item.name for item in session.get_outputs() if item.type in NUMERIC_TYPES}
        wanted = [name for name in names if name in numeric]
        return dict(zip(wanted, self._run(session, wanted, inputs), strict=True)) if wanted else {}

    @cached_property
    def _proto(self) -> onnx.ModelProto:
        return load_proto(self._source)

    def _run(self, session: Any, wanted: list[str] | None, inputs: Arrays) -> list[np.ndarray]:
        if len(inputs) != len(self._specs):
            raise DataError(f"{self.label}: takes {len(self._specs)} inputs, {len(inputs)} were given")
        feeds = {spec.name: self._fit(spec, array) for spec, array in zip(self._specs, inputs, strict=True)}
        try:
            return [np.asarray(value) for value in session.run(wanted, feeds)]
        except RUNTIME_ERRORS as error:
            raise UnsupportedModelError(f"{self.label}: onnxruntime cannot run it: {one_line(error)}") from error

    def _fit(self, spec: InputSpec, array: np.ndarray) -> np.ndarray:
        """Cast between float types, and refuse what the file's own shape excludes."""
        dims = spec.dims
        fits = not dims or (
            len(dims) == array.ndim
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(dims, array.shape, strict=True))
        )
        if not fits:
            wanted = "x".join(str(dim) for dim in dims)
            given = "x".join(str(size) for size in array.shape)
            raise DataError(f"{self.label}: input '{spec.name}' is {wanted}, the data is {given}")
        if np.issubdtype(spec.dtype, np.floating) != np.issubdtype(array.dtype, np.floating):
            raise DataError(f"{self.label}: input '{spec.name}' is {spec.dtype.__name__}, the data is {array.dtype}")
        return np.asarray(array, dtype=spec.dtype, order="C")


def captured_batch(module: Any) -> int | None:
    """The only batch size that a captured graph takes; None where it takes any, and for other modules."""
    import torch

    if not isinstance(module, torch.fx.GraphModule):
        return None
    example = next((node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"), None)
    # A size that the model forces may still be a symbol, one that is known to be constant.
    size = str(example.shape[0]) if isinstance(example, torch.Tensor) and example.ndim else ""
    return int(size) if size.isdigit() else None


class _TorchRunner:
    """Runs a module in evaluation mode and leaves it in the mode it was in."""

    def __init__(self, module: Any, label: str) -> None:
        self.label = label
        self._module = module
        self.output_names: tuple[str, ...] | None = None
        self.fixed_batch = captured_batch(module)

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        import torch

        from graphprune.runtime.torch_mode import evaluation

        with self._errors(inputs), evaluation(self._module), torch.no_grad():
            result = self._module(*self._tensors(inputs))
        leaves = torch.utils._pytree.tree_leaves(result)
        return [_to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def answer(self, inputs: Arrays) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        return self.run(inputs), {}

    def value_spans(self) -> dict[str, tuple[int, int]]:
        import torch

        if not isinstance(self._module, torch.fx.GraphModule):
            return {}
        place = {node: at for at, node in enumerate(self._module.graph.nodes)}
        return {
            node.name: (at, max((place[user] for user in node.users), default=at))
            for node, at in place.items()
            if node.op not in {"placeholder", "get_attr", "output"}
        }

    def values(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        from graphprune.runtime.torch_mode import evaluation

        wanted = frozenset(names)
        found: dict[str, np.ndarray] = {}

        class Recorder(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted and isinstance(value, torch.Tensor):
                    found[n.name] = _to_numpy(value)
                return value

        with self._errors(inputs), evaluation(self._module), torch.no_grad():
            Recorder(self._module).run(*self._tensors(inputs))
        return found

    @contextmanager
    def _errors(self, inputs: Arrays) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # The model's own code may raise anything.
            given = ", ".join("x".join(str(size) for size in array.shape) for array in inputs)
            raise DataError(f"{self.label} does not run on inputs of {given}: {one_line(error)[:200]}") from error

    def _tensors(self, inputs: Arrays) -> list[Any]:
        import torch

        first = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        device = None if first is None else first.device
        return [
            torch.from_numpy(np.asarray(array, order="C")).to(first.dtype).to(device)
            if first is not None and np.issubdtype(array.dtype, np.floating)
            else torch.from_numpy(np.asarray(array, order="C")).to(device)
            for array in inputs
        ]


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, in its sub-graphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from _read_by(inner)


def _to_numpy(tensor: Any) -> np.ndarray:
    # A copy: later in-place operators of the graph may write into the same storage. Numpy has no bfloat16.
    detached = tensor.detach().cpu()
    return np.array(detached.float() if str(detached.dtype) == "torch.bfloat16" else detached)

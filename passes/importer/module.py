"""An ONNX graph as a torch module: `forward` goes through the nodes, parameters are the graph's initializers."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from graphprune.passes.errors import UnsupportedModelError
from graphprune.passes.importer.call import Call, Value, as_tensor, torch_type
from graphprune.passes.importer.operators import OPERATORS
from graphprune.passes.importer.rest import cut_rest
from graphprune.passes.onnx.clean import EliminateDeadCodePass, EliminateIdentityPass, UnlistLiteralsPass
from graphprune.passes.onnx.model import SMALL, load_model

__all__ = ["OnnxModule", "import_onnx"]

_STANDARD = ("", "ai.onnx")
#: Inputs that hold weights, by operator; elsewhere literals of floats are weights where they have several numbers.
_STATISTICS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
_SETTINGS = {
    *(("Clip", 1), ("Clip", 2), ("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Pad", 2), ("Dropout", 1)),
    *(("Dropout", 2), ("OneHot", 2), ("Range", 0), ("Range", 1), ("Range", 2), ("DequantizeLinear", 1)),
}
_NO_WEIGHTS = _STATISTICS | _SETTINGS


def import_onnx(source: str | Path | ir.Model) -> "OnnxModule":
    """Return the graph of an ONNX file as a torch module in evaluation mode.

    Raises:
        ModelLoadError: the file cannot be read.
        UnsupportedModelError: an operator has no torch form; names all such operators.
    """
    model = source if isinstance(source, ir.Model) else load_model(source)
    # Not by their `__call__`, which looks for faults: it was done when the file was read, and takes as long as reading.
    for tidy in (UnlistLiteralsPass(), EliminateIdentityPass(), EliminateDeadCodePass()):
        tidy.call(model)
    names = tuple(str(value.name) for value in model.graph.inputs)
    plain = all(name.isidentifier() and not iskeyword(name) for name in names) and "self" not in names
    return _taking(names if plain else tuple(f"x{at}" for at in range(len(names))))(model).eval()


@cache
def _taking(arguments: tuple[str, ...]) -> "type[OnnxModule]":
    """The class whose `forward` has these arguments: torch.export takes no `*inputs` for a free batch.

    Those of the captured graph are called so, too: what is given by name finds its input there.
    """
    names = ", ".join(arguments)
    forward = eval(f"lambda self, {names}: self.compute(({names},))")  # identifiers alone are in this text
    return type("OnnxModule", (OnnxModule,), {"forward": forward, "__doc__": OnnxModule.__doc__})


class OnnxModule(nn.Module):
    """A module that computes what an ONNX graph does.

    Attributes:
        input_names: of the graph's inputs, in the order of `forward`'s arguments.
        output_names: of what `forward` returns: one tensor, or a tuple of several.
        source: the file, where it came from one.
        renamed: name of a parameter or buffer -> that of the literal, where a module could not have the latter.
        input_shapes: of the inputs as the file states them: a number, the name of a free size, or None.
        left_out: operators behind the last layers that have no torch form. The outputs are then what enters them.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.source: Path | None = None
        self.renamed: dict[str, str] = {}
        graph = model.graph
        self.input_names = tuple(str(value.name) for value in graph.inputs)
        self.output_names = tuple(str(value.name) for value in graph.outputs)
        self.input_types = tuple(value.dtype or ir.DataType.FLOAT for value in graph.inputs)
        self.input_shapes = tuple(_stated(value) for value in graph.inputs)
        literals = dict(_literals(graph))
        self._nodes = [node for node in graph if not _is_constant(node)]
        self._opsets = {
            ("" if domain in _STANDARD else domain): version for domain, version in model.opset_imports.items()
        }
        self._outputs = list(graph.outputs)
        self._inputs = list(graph.inputs)
        unknown = [node for node in self._nodes if _name(node) not in OPERATORS]
        self.left_out = tuple(sorted(set(map(_name, unknown))))
        if unknown:
            self._leave_out(graph, unknown)
        self._last_use = _last_uses(self._nodes, self._outputs)
        self._known: dict[str, np.ndarray] = {}
        self._stored: dict[str, str] = {}
        self._taken: set[str] = set()
        read = {value for node in self._nodes for value in _read(node)} | set(self._outputs)
        for name, value in literals.items():
            if not unknown or value in read:
                self._store(name, value)

    def _leave_out(self, graph: ir.Graph, unknown: Sequence[ir.Node]) -> None:
        """Give what enters the part behind the last layers that has no torch form, in place of what comes out."""
        outputs = cut_rest(graph, set(unknown))
        if outputs is None:
            raise UnsupportedModelError(
                f"there is no torch form of {', '.join(self.left_out)}: the file can be slimmed, but not trained"
            )
        wanted, kept = set(outputs), []
        for node in reversed(self._nodes):
            if any(value in wanted for value in node.outputs):
                wanted.update(_read(node))
                kept.append(node)
        self._nodes, self._outputs = kept[::-1], outputs
        self.output_names = tuple(str(value.name) for value in outputs)

    def _store(self, name: str, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        kind = tensor.dtype
        is_float = kind.is_floating_point()
        if not is_float and tensor.size <= SMALL:
            self._known[name] = np.array(tensor.numpy())
            return
        array = np.array(tensor.numpy(), order="C")
        if array.dtype.isbuiltin == 2:  # bfloat16, a type that numpy does not have by itself
            array = array.astype(np.float32)
        numbers = torch.from_numpy(array).to(torch_type(kind))
        is_weight = is_float and array.size > 1
        is_weight = is_weight and not any((use.node.op_type, use.idx) in _NO_WEIGHTS for use in value.uses())
        owner: nn.Module = self
        free = self._free(name)
        if "." in free:  # torch keeps dots for modules in modules
            for part in free.split(".")[:-1]:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
        last = free.split(".")[-1]
        if is_weight:
            owner.register_parameter(last, nn.Parameter(numbers))
        else:
            owner.register_buffer(last, numbers)
        self._stored[name] = free
        self._taken.add(free)
        if free != name:
            self.renamed[free] = name

    def _free(self, name: str) -> str:
        """The name of a literal as one that a module can have: what every module has gets a line behind it."""
        parts = [part or "_" for part in name.split(".")]
        while True:
            free = ".".join(f"{part}_" if hasattr(_PLAIN, part) else part for part in parts)
            if free not in self._taken:
                return free
            parts[-1] += "_"

    def _literal(self, name: str) -> Value:
        if name in self._known:
            return self._known[name]
        owner: Any = self
        *path, last = self._stored[name].split(".")
        for part in path:
            owner = owner._modules[part]
        held: Tensor = owner._parameters[last] if last in owner._parameters else owner._buffers[last]
        return held

    def compute(self, inputs: Sequence[Tensor]) -> Any:
        """The graph's outputs, which `forward` returns. Shapes: as the file states them; a batch it fixes is free."""
        first = self.input_shapes[0][0] if self.input_shapes and self.input_shapes[0] else None
        batch = (first, inputs[0].shape[0]) if isinstance(first, int) else None
        values: dict[int, Value] = {id(value): given for value, given in zip(self._inputs, inputs, strict=True)}
        for at, node in enumerate(self._nodes):
            given = tuple(None if source is None else self._value(source, values) for source in node.inputs)
            domain = "" if node.domain in _STANDARD else node.domain
            call = Call(node, given, self._opsets.get(domain, 1), self.training, batch)
            results = OPERATORS[_name(node)](call)
            several: list[Any] = list(results) if isinstance(results, list | tuple) else [results]
            for output, result in zip(node.outputs, several, strict=False):
                values[id(output)] = result
            for key in self._last_use.get(at, ()):
                values.pop(key, None)
        found = tuple(as_tensor(self._present(self._value(output, values))) for output in self._outputs)
        return found[0] if len(found) == 1 else found

    def _value(self, value: ir.Value, values: Mapping[int, Value]) -> Value:
        if id(value) in values:
            return values[id(value)]
        return self._literal(str(value.name))

    @staticmethod
    def _present(value: Value) -> Tensor | np.ndarray:
        assert value is not None
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxModule":
        twin = copy.copy(self)
        twin.__dict__ = {**self.__dict__}
        for table in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[table] = copy.deepcopy(self.__dict__[table], memo)
        memo[id(self)] = twin
        return twin


#: What every module has, and a captured graph.
_PLAIN = fx.GraphModule({}, fx.Graph())


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in _STANDARD


def _literals(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    """Every literal of a graph by name, those in Constant nodes too: their values hold the numbers from here on."""
    for name, value in graph.initializers.items():
        yield str(name), value
    for node in filter(_is_constant, graph):
        (value,), (kind,) = node.outputs, node.attributes.values()
        if value.const_value is None:
            value.const_value = kind.value if kind.name == "value" else ir.tensor(kind.value, name=value.name)
        yield str(value.name), value


def _stated(value: ir.Value) -> tuple[int | str | None, ...]:
    return () if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape.dims)


def _name(node: ir.Node) -> str:
    return node.op_type if node.domain in _STANDARD else f"{node.domain}::{node.op_type}"


def _last_uses(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[int, list[int]]:
    """Index of a node -> the values that nobody reads after it."""
    last: dict[int, int] = {}
    for at, node in enumerate(nodes):
        for value in _read(node):
            last[id(value)] = at
    kept = {id(value) for value in outputs}
    found: dict[int, list[int]] = {}
    for key, at in last.items():
        if key not in kept:
            found.setdefault(at, []).append(key)
    return found


def _read(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)

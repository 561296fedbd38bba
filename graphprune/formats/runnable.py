"""What of an ONNX file onnxruntime can run, as a file of its own: a slim file is proven on that.

1. Operators that onnxruntime does not have (a plugin of another runtime at the end of a detector) are cut off. What
   goes into one becomes an output, and what comes out of it, where the file states its sizes, an input.
2. Numbers that it has no kernels for (bfloat16, double) become float32.

Only operators without a rule are cut off: nothing of them can have been changed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from graphprune.formats.onnx_files import write
from graphprune.passes.channels.rules import ONNX
from graphprune.passes.errors import ModelLoadError, VerificationError
from graphprune.passes.onnx.clean import EliminateDeadCodePass, UnlistLiteralsPass
from graphprune.passes.onnx.contract import literal
from graphprune.passes.onnx.model import bodies, captured_values, load_model
from graphprune.passes.onnx.sizes import operator_name
from graphprune.runtime.onnx_inputs import input_specs
from graphprune.runtime.onnx_session import open_session

__all__ = ["Runnable", "runnable"]

#: Types of numbers that many operators have no kernels for.
_RARE = frozenset({ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_NAMES = {ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "float64"}

#: Attributes that name a type of numbers.
_TYPE_ATTRIBUTES = ("to", "dtype")

#: How onnxruntime says that it lacks a kernel.
_NO_KERNEL = re.compile(r"(?:implementation|kernel) for (?:[\w.]+[.:])?(\w+)\(\d+\)")

_TRIES = 8


@dataclass(frozen=True)
class Runnable:
    """A file that onnxruntime can run.

    Attributes:
        path: where it lies.
        notes: in what it differs from the file that it stands for, and what of that is not compared.
    """

    path: Path
    notes: tuple[str, ...] = ()


def runnable(path: Path, name: str, folder: Path) -> Runnable:
    """Return a file as it is if onnxruntime can run it, else what of it onnxruntime can run.

    Args:
        path: the file.
        name: what messages call it.
        folder: where the other file is written.

    Raises:
        ModelLoadError: it cannot be read; or onnxruntime cannot run it, and that is not for a reason told above.
        VerificationError: nothing that could be compared is left.
    """
    problem = _problem(path, name)
    if problem is None:
        return Runnable(path)
    model = load_model(path)
    UnlistLiteralsPass()(model)
    foreign = [node for node in model.graph if not all(_is_registered(inner) for inner in _with_bodies(node))]
    rare = _to_float32(model)
    notes = [*_cut_off(model, foreign), *_said(rare)]
    part = folder / f"{path.stem}.part.onnx"
    for _ in range(_TRIES if notes else 0):
        write(model, part)
        problem = _problem(part, name)
        if problem is None:
            return Runnable(part, tuple(notes))
        kind = _NO_KERNEL.search(str(problem))
        lacking = [node for node in model.graph if kind is not None and node.op_type == kind[1]]
        if not lacking or any(operator_name(node) in ONNX for node in lacking):
            break
        notes = [*_cut_off(model, lacking), *notes]
    assert problem is not None
    raise problem


def _problem(path: Path, name: str) -> ModelLoadError | None:
    """Why onnxruntime does not run a file, if it does not."""
    try:
        input_specs(open_session(path, optimize=False, name=name, mapped=True), name)
    except ModelLoadError as error:
        return error
    return None


def _with_bodies(node: ir.Node) -> Iterable[ir.Node]:
    yield node
    for graph in bodies(node):
        yield from graph.all_nodes()


@cache
def _registered() -> frozenset[tuple[str, str]]:
    return frozenset((schema.domain, schema.name) for schema in get_all_operator_schema())


def _is_registered(node: ir.Node) -> bool:
    """Has this onnxruntime ever heard of an operator?"""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type) in _registered()


def _said(kinds: Sequence[ir.DataType]) -> list[str]:
    names = " and ".join(_NAMES[kind] for kind in kinds)
    return [f"onnxruntime cannot run it in {names}: compared are both files computed in float32"] if kinds else []


def _to_float32(model: ir.Model) -> list[ir.DataType]:
    """Let a model compute in float32 where it does in numbers that there are few kernels for, in place; which ones."""
    found: dict[ir.DataType, None] = {}

    def plain(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        found.setdefault(tensor.dtype)
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    for value in _values(model):
        if value.dtype in _RARE:
            found.setdefault(value.dtype)
            value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.const_value is not None and value.const_value.dtype in _RARE:
            value.const_value = plain(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _RARE:
                node.attributes[name] = ir.AttrTensor(name, plain(attribute.as_tensor()))
            if name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _RARE:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    return list(found)


def _values(model: ir.Model) -> Iterable[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs
        for graph in bodies(node):
            yield from graph.inputs
            yield from graph.initializers.values()


def _cut_off(model: ir.Model, foreign: Sequence[ir.Node]) -> list[str]:
    """Take nodes out, in place: what goes into them becomes outputs, what comes out inputs; what is said of it.

    Raises:
        VerificationError: no output is left.
    """
    graph, notes = model.graph, []
    aliases = []
    for number, node in enumerate(foreign):
        aliases += [
            _alias(graph, node, value, f"{node.op_type}_{number}.input_{at}")
            for at, value in enumerate(node.inputs)
            if value is not None and value.producer() is not None and literal(model, value) is None
        ]
        for at, value in enumerate(node.outputs):
            if value.uses() and _has_sizes(value):
                stand_in = ir.Value(name=f"{node.op_type}_{number}.output_{at}", shape=value.shape, type=value.type)
                value.replace_all_uses_with(stand_in)
                graph.inputs.append(stand_in)
    lost = _lost(model, foreign)
    for kind in dict.fromkeys(operator_name(node) for node in foreign):
        behind = "" if len(lost) == len(foreign) else ", and nothing of what is computed from its results"
        notes.append(f"{kind} cannot be run by onnxruntime: compared is what goes into it{behind}")
    gone = {value for node in lost for value in node.outputs}
    kept = [value for value in graph.outputs if value not in gone and value.producer() is not None]
    graph.outputs[:] = [*kept, *(value for value in aliases if value.producer() not in lost)]
    if not graph.outputs:
        raise VerificationError(f"nothing can be compared: {', '.join(notes)}")
    graph.remove(lost, safe=True)
    EliminateDeadCodePass()(model)
    return notes


def _has_sizes(value: ir.Value) -> bool:
    """Does the file state a value's sizes, but for a batch?"""
    dims = None if value.shape is None else list(value.shape)
    return dims is not None and value.dtype is not None and all(isinstance(dim, int) for dim in dims[1:])


def _alias(graph: ir.Graph, node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """The value under a name that tells what it goes into, which is the same in every file that this node is in."""
    copy = ir.node("Identity", [value], name=name)
    (result,) = copy.outputs
    result.name, result.shape, result.type = name, value.shape, value.type
    graph.insert_before(node, copy)
    return result


def _lost(model: ir.Model, foreign: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes that cannot be computed without the results of these, and these."""
    lost: dict[ir.Node, None] = {}
    gone: set[ir.Value] = set()
    for node in model.graph:
        if node in foreign or gone & {*node.inputs, *captured_values(node)}:
            lost[node] = None
            gone.update(node.outputs)
    return list(lost)

"""One node of an ONNX graph as its torch expression sees it: inputs, attributes, and which of them are known.

Two kinds of values run through a graph: tensors, which torch computes, and *sizes*, NumPy arrays of Python numbers
that the graph computes from shapes and literals. Sizes stay outside torch because `torch.export` must see them as
numbers (or as symbols, where the batch is free): a Reshape by a tensor cannot be captured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphprune.passes.errors import UnsupportedModelError

__all__ = ["Call", "Operator", "Result", "Value", "as_tensor", "torch_type"]

#: What flows along an edge: a tensor, sizes, or nothing (an optional input that is absent).
Value = Tensor | np.ndarray | None
Result = Value | Sequence[Value]

_TYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def torch_type(kind: ir.DataType | int) -> torch.dtype:
    """The torch type of an ONNX one.

    Raises:
        UnsupportedModelError: torch has none.
    """
    kind = ir.DataType(kind)
    if kind not in _TYPES:
        raise UnsupportedModelError(f"there is no torch type for {kind.name}")
    return _TYPES[kind]


def as_tensor(value: Tensor | np.ndarray, like: Tensor | None = None) -> Tensor:
    """A value as a tensor; sizes become one, of the type of `like` where that is floating point."""
    if isinstance(value, Tensor):
        return value
    if value.dtype != object:
        made = torch.from_numpy(np.ascontiguousarray(value))
        return made if like is None or not made.is_floating_point() else made.to(like.dtype)
    kind: Any = torch.int64 if any(isinstance(item, torch.SymInt) for item in value.reshape(-1)) else None
    parts = [torch.scalar_tensor(item, dtype=kind) if kind else torch.as_tensor(item) for item in value.reshape(-1)]
    return torch.stack(parts).reshape(value.shape)


@dataclass(frozen=True)
class Call:
    """A node with its inputs.

    Attributes:
        node: of the ONNX graph.
        inputs: their values, in order; None where an optional one is absent.
        opset: version of the operator set that the node's operator is of.
        trained: whether batch statistics are to be used (a module in training mode).
        batch: the batch that the file states as a number, and the one that the network is run at; None where the file
            leaves it free.
    """

    node: ir.Node
    inputs: tuple[Value, ...]
    opset: int
    trained: bool = False
    batch: tuple[int, Any] | None = None

    def lifted(self, sizes: Sequence[Any], x: Tensor) -> list[Any]:
        """A shape for `x` whose first size is the batch that the file states, for the batch at hand.

        Files of a fixed batch have it written into their reshapes; whether samples stay apart is checked when the
        module is captured.
        """
        if self.batch is None or not len(sizes) or x.dim() < 1:
            return list(sizes)
        stated, actual = self.batch
        is_stated = isinstance(sizes[0], int) and sizes[0] == stated
        return (
            [actual, *sizes[1:]]
            if is_stated and x.shape[0] is not stated and _same(x.shape[0], actual)
            else list(sizes)
        )

    @property
    def kind(self) -> str:
        """The operator's name."""
        return self.node.op_type

    def refuse(self, why: str) -> UnsupportedModelError:
        """The error that says what of this node has no torch form."""
        return UnsupportedModelError(f"{self.kind} '{self.node.name}' cannot be trained: {why}")

    def has(self, at: int) -> bool:
        """Is the input of that index given?"""
        return at < len(self.inputs) and self.inputs[at] is not None

    def tensor(self, at: int, like: Tensor | None = None) -> Tensor:
        """An input as a tensor."""
        value = self.inputs[at] if at < len(self.inputs) else None
        if value is None:
            raise self.refuse(f"its input {at} is missing")
        return as_tensor(value, like)

    def optional(self, at: int, like: Tensor | None = None) -> Tensor | None:
        """An input as a tensor, or None where it is absent."""
        return self.tensor(at, like) if self.has(at) else None

    @property
    def is_static(self) -> bool:
        """Are all inputs sizes or absent? A literal of one number beside a size is one as well: a stride, a half."""
        are_sizes = [isinstance(value, np.ndarray) for value in self.inputs]
        if not any(are_sizes):
            return not any(isinstance(value, Tensor) for value in self.inputs)
        return all(
            is_size or value is None or self._is_number(at)
            for at, (is_size, value) in enumerate(zip(are_sizes, self.inputs, strict=True))
        )

    def _is_number(self, at: int) -> bool:
        """Is an input a literal of one number, which is no weight?"""
        source = self.node.inputs[at]
        held = None if source is None else source.const_value
        return held is not None and held.size == 1

    def static(self, at: int) -> np.ndarray:
        """The numbers of an input that must be known before the network runs.

        Raises:
            UnsupportedModelError: they are computed by the network.
        """
        value = self.inputs[at]
        if isinstance(value, np.ndarray):
            return value
        source = self.node.inputs[at]
        held = None if source is None else source.const_value
        if held is None:
            raise self.refuse(f"its input {at} depends on what the network computes")
        return held.numpy()

    def numbers(self, at: int) -> list[Any]:
        """The same as a flat list of Python numbers or symbols."""
        return [item.item() if isinstance(item, np.generic) else item for item in self.static(at).reshape(-1)]

    def number(self, at: int, default: Any = None) -> Any:
        """The same of an input of one number; `default` where it is absent."""
        return self.numbers(at)[0] if self.has(at) else default

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        value = found.value
        return list(value) if isinstance(value, list | tuple) else value

    def axes(self, rank: int, at: int = 1, name: str = "axes") -> list[int] | None:
        """Axes from an input or from an attribute, non-negative; None where neither gives any."""
        given = self.numbers(at) if self.has(at) else self.attr(name)
        return None if given is None else [int(axis) % rank for axis in given]


def _same(size: Any, batch: Any) -> bool:
    """Are these one size? Asked of symbols by their names, so that nothing is assumed of their values."""
    if isinstance(size, int) or isinstance(batch, int):
        return isinstance(size, int) and isinstance(batch, int) and size == batch
    return str(size) == str(batch)


Operator = Callable[[Call], Result]

"""Fold what scales and shifts channels into the layer before it.

    BatchNorm(W x + b) = (s W) x + (s (b - mean) + beta),    s = gamma / sqrt(var + epsilon)
    (W x + b) + c      = W x + (b + c)

Computed in double precision. Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.passes.onnx.contract import NodePass, add_literal, literal
from graphprune.passes.onnx.pages import put_aside

_REAL = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_LAYERS = ("Conv", "ConvTranspose", "Gemm")

#: So many numbers at a time are held in double precision.
_CHUNK = 1 << 20


class _Fold(NodePass):
    def __init__(self, may_grow: bool = False) -> None:
        """`may_grow`: fold also where the file grows by it, since layers share their vectors of ones and zeros."""
        super().__init__()
        self.may_grow = may_grow


class FoldBatchNormPass(_Fold):
    """Fold batch norms of inference into the Conv, ConvTranspose or Gemm before them.

    Folded are those whose layer is read by nobody else and has weights that are literals of its own, and where the
    file does not grow by it.
    """

    kinds = frozenset({"BatchNormalization"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        return _fold_norm(model, node, self.may_grow)


class FoldBiasPass(_Fold):
    """Fold the addition of one literal number a channel into the bias of the layer before it."""

    kinds = frozenset({"Add"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        return _fold_addition(model, node, self.may_grow)


@dataclass(frozen=True)
class _Layer:
    node: ir.Node
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    channels: int

    @property
    def groups(self) -> int:
        found = self.node.attributes.get("group")
        return 1 if found is None else found.as_int()

    def scaled(self, scale: NDArray[np.float64]) -> NDArray[Any] | None:
        """The weight with each output channel times its scale; None where that is no finite number."""
        inner = (1,) * (self.weight.ndim - 2)
        shape: tuple[int, ...] = self.weight.shape
        if self.node.op_type == "Conv":
            factors = scale.reshape(-1, 1, *inner)
        elif self.node.op_type == "Gemm":
            transposed = self.node.attributes.get("transB")
            factors = scale[:, None] if transposed is not None and transposed.as_int() == 1 else scale[None, :]
        else:
            shape = (self.groups, shape[0] // self.groups, *shape[1:])  # (I, O/g) -> (g, I/g, O/g)
            factors = scale.reshape(self.groups, 1, -1, *inner)
        product = _product(self.weight.reshape(shape), factors)
        return None if product is None else product.reshape(self.weight.shape)


def _product(weight: NDArray[Any], factors: NDArray[np.float64]) -> NDArray[Any] | None:
    """Computed in double precision, a part at a time; None where it is no finite number."""
    factors = np.broadcast_to(factors, (weight.shape[0], *factors.shape[1:]))
    result = np.empty_like(weight)
    step = max(1, _CHUNK * weight.shape[0] // max(1, weight.size))
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        with np.errstate(over="ignore", invalid="ignore"):
            result[part] = weight[part] * factors[part]
        if not np.isfinite(result[part]).all():
            return None
    return result


def _layer(model: ir.Model, value: ir.Value | None, *, changes_weight: bool) -> _Layer | None:
    """The layer that gives `value` to one reader alone, if its bias, or its weight too, can be changed."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in _LAYERS or value is None:
        return None
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    if any(node.attributes[k].as_float() != 1.0 for k in ("alpha", "beta") if k in node.attributes):
        return None
    given = [*node.inputs, None][1:3]
    weight = literal(model, given[0])
    bias = literal(model, given[1])
    if weight is None or weight.dtype not in _REAL or (given[1] is not None and bias is None):
        return None
    if changes_weight and given[0] is not None and len(given[0].uses()) > 1:
        return None  # another layer has it too, and two would be stored
    groups = node.attributes.get("group")
    sizes = tuple(weight.shape.numpy())
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    channels = sizes[0]
    if node.op_type == "ConvTranspose":
        channels = sizes[1] * (1 if groups is None else groups.as_int())
    elif node.op_type == "Gemm" and not transposed:
        channels = sizes[1]
    if bias is not None and not _is_row(tuple(bias.shape.numpy()), channels):
        return None
    return _Layer(node, weight.numpy(), None if bias is None else bias.numpy().reshape(-1), channels)


def _grows(model: ir.Model, node: ir.Node, layer: _Layer, read: Sequence[ir.Value | None]) -> bool:
    """Would the file grow if a bias took the place of a node and of the literals that it alone reads?"""
    old = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
    added = layer.channels * layer.weight.itemsize
    freed = ir.serde.serialize_node(node).ByteSize()
    for value in (old, *read):
        tensor = literal(model, value)
        if value is not None and tensor is not None and len(value.uses()) == 1:
            freed += tensor.nbytes
    return added > freed


def _is_row(shape: tuple[int, ...], channels: int) -> bool:
    """One number a channel, or one for all: not the column of a Gemm, with one number a sample."""
    return set(shape[:-1]) <= {1} and set(shape[-1:]) <= {1, channels}


def _fold_norm(model: ir.Model, node: ir.Node, may_grow: bool) -> bool:
    layer = _layer(model, node.inputs[0], changes_weight=True)
    found = [literal(model, value) for value in node.inputs[1:5]]
    training = node.attributes.get("training_mode")
    used = [output for output in node.outputs[1:] if output.uses() or output.is_graph_output()]
    if layer is None or used or (training is not None and training.as_int()):
        return False
    if not may_grow and _grows(model, node, layer, node.inputs[1:5]):
        return False
    vectors = [None if tensor is None else tensor.numpy().astype(np.float64) for tensor in found]
    if any(vector is None or vector.shape != (layer.channels,) for vector in vectors):
        return False
    gamma, beta, mean, variance = (np.asarray(vector) for vector in vectors)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    bias = np.zeros(layer.channels) if layer.bias is None else layer.bias.astype(np.float64)
    weight, bias = layer.scaled(scale), scale * (bias - mean) + beta
    if weight is None or not np.isfinite(bias).all():
        return False
    _set(model, layer.node, 1, weight)
    _set(model, layer.node, 2, bias.astype(layer.weight.dtype))
    _skip(model, node, layer.node.outputs[0])
    return True


def _fold_addition(model: ir.Model, node: ir.Node, may_grow: bool) -> bool:
    for at in (0, 1):
        layer = _layer(model, node.inputs[at], changes_weight=False)
        constant = literal(model, node.inputs[1 - at])
        if layer is None or constant is None or constant.dtype not in _REAL:
            continue
        lead = 1 if layer.node.op_type == "Gemm" else layer.weight.ndim - 1
        sizes = tuple(constant.shape.numpy())
        shape = (1,) * (lead + 1 - len(sizes)) + sizes
        dim = lead if layer.node.op_type == "Gemm" else 1
        if len(sizes) > lead + 1 or any(n != 1 for d, n in enumerate(shape) if d != dim):
            continue
        if shape[dim] not in (1, layer.channels):
            continue
        if not may_grow and _grows(model, node, layer, [node.inputs[1 - at]]):
            continue
        old = np.zeros(layer.channels) if layer.bias is None else layer.bias.astype(np.float64)
        bias = np.broadcast_to(old + constant.numpy().astype(np.float64).reshape(-1), (layer.channels,))
        _set(model, layer.node, 2, bias.astype(layer.weight.dtype))
        _skip(model, node, layer.node.outputs[0])
        return True
    return False


def _set(model: ir.Model, node: ir.Node, position: int, array: NDArray[Any]) -> None:
    """Give a node another literal, under the old name where nobody else reads it."""
    old = node.inputs[position] if position < len(node.inputs) else None
    tensor = ir.tensor(np.asarray(array, order="C"))
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        if old.const_value is not None:
            put_aside(old.const_value.numpy())
        old.const_value, old.shape = ir.tensor(tensor.numpy(), name=old.name), ir.Shape(array.shape)
        return
    weight = node.inputs[1]
    assert weight is not None
    name = f"{node.outputs[0].name}_bias" if position == 2 else f"{weight.name}_folded"
    value = add_literal(model, name, tensor)
    if position >= len(node.inputs):
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def _skip(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    """Put `source` where the first result of `node` stood, under its name."""
    result = node.outputs[0]
    name = result.name
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    source.shape, source.type = result.shape or source.shape, result.type or source.type
    model.graph.remove(node, safe=True)
    source.name = name

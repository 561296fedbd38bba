"""Write what breaks a chain of onnxruntime's blocked convolutions as something that does not.

Onnxruntime's float32 kernels keep channels in blocks. A chain of Conv, Add, activation and pooling stays in that layout
from end to end; Slice, Pad and ReduceMean have no kernels for it. One of them in front of a residual Add takes that Add
out of the layout, and with it every Add after it on the same trunk: each convolution of the stage then loses its fused
Add and Relu and gets a reordering on either side.

    Pad_c(x[:, :, ::s, ::s])  =  Conv(x, W, stride s),   W[c, d] = 1 where output channel c is input channel d, else 0
    x + b, b one number a channel =  Conv(x, 1, b, group channels)
    ReduceMean(x, (2, 3))     =  GlobalAveragePool(x)

The first two are exact for finite numbers (one product by 1, the others 0). The second is what a residual branch leaves
behind that was removed as a whole. Source: onnxruntime,
`core/optimizer/nchwc_transformer.cc`; measured in benchmarks/latency/export.py.
"""

import numpy as np
import onnx_ir as ir

from graphprune.passes.onnx.contract import NodePass, add_literal, literal

__all__ = ["SELECTS", "GlobalPoolPass", "SelectChannelsPass", "ShiftPass"]

#: Key of a node's metadata: its multiplications are by 0 and 1 and stand for data movement.
SELECTS = "graphprune.selects"

# Below a block any number of input channels has a blocked kernel, above only multiples of this.
_CHANNELS = 4
_POSITION_BY_POSITION = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "BatchNormalization", "Add"}
)


class SelectChannelsPass(NodePass):
    """Replace subsampling and zero-padded channels by a convolution, where the result is added to something.

    Cases:
        1. Slice nodes with a step along height or width that start at 0 and reach the end, and Pad nodes that add
           channels of zeros, one after the other and read by nobody else, between a float32 feature map and an Add:
           they become one 1x1 convolution.
        2. The feature map has a number of channels that is unknown or no multiple of 4: they stay, since
           the convolution would leave the layout as well.
    """

    kinds = frozenset({"Add"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        found = [_select(model, value) for value in dict.fromkeys(node.inputs) if value is not None]
        return any(found)


class ShiftPass(NodePass):
    """Replace the addition of one constant a channel to a float32 feature map by a convolution of each channel alone.

    Cases:
        1. Add of a feature map, with a number of channels that is a multiple of 4, and a constant of the shape
           (channels, 1, 1) or (1, channels, 1, 1): a 1x1 depthwise convolution by 1 with the constant as its bias.
        2. Any other Add stays.
    """

    kinds = frozenset({"Add"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        return _shift(model, node)


class GlobalPoolPass(NodePass):
    """Replace the mean over height and width of a float32 feature map by GlobalAveragePool."""

    kinds = frozenset({"ReduceMean"})

    def rewrite(self, model: ir.Model, node: ir.Node) -> bool:  # noqa: D102
        return _pool(model, node)


def _select(model: ir.Model, value: ir.Value) -> bool:
    """Replace the chain of nodes that ends in `value`; False if it is none of case 1."""
    result, chain, strides, before, after = value, [], [1, 1], 0, 0
    while (node := value.producer()) is not None and len(value.uses()) == 1 and not value.is_graph_output():
        step, pads = _step_of_slice(model, node), _pads_of_channels(model, node)
        if step is not None:
            strides = [strides[0] * step[0], strides[1] * step[1]]
        elif pads is not None:
            before, after = before + pads[0], after + pads[1]
        else:
            break
        chain.append(node)
        assert node.inputs[0] is not None
        value = node.inputs[0]
    channels = _channels(value)
    if not chain or channels is None or channels % _CHANNELS:
        return False
    weight = np.zeros((before + channels + after, channels, 1, 1), np.float32)
    weight[before + np.arange(channels), np.arange(channels)] = 1
    kernel = add_literal(model, f"{result.name}_selection", ir.tensor(weight))
    _replace(
        model, result, "Conv", [value, kernel], {"kernel_shape": [1, 1], "strides": strides}, {SELECTS: "channels"}
    )
    for node in chain:
        model.graph.remove(node, safe=True)
    return True


def _shift(model: ir.Model, node: ir.Node) -> bool:
    """Replace an Add; False if it is none of case 1."""
    for value, constant in (node.inputs, reversed(node.inputs)):
        shift = literal(model, constant)
        channels = None if value is None else _channels(value)
        if shift is None or value is None or channels is None or channels % _CHANNELS:
            continue
        sizes = tuple(shift.shape.numpy())
        if sizes not in ((channels, 1, 1), (1, channels, 1, 1)):
            continue
        result = node.outputs[0]
        kernel = add_literal(model, f"{result.name}_ones", ir.tensor(np.ones((channels, 1, 1, 1), np.float32)))
        bias = add_literal(model, f"{result.name}_shift", ir.tensor(shift.numpy().reshape(-1)))
        options: dict[str, int | list[int]] = {"kernel_shape": [1, 1], "group": channels}
        _replace(model, result, "Conv", [value, kernel, bias], options, {SELECTS: "channels"})
        model.graph.remove(node, safe=True)
        return True
    return False


def _step_of_slice(model: ir.Model, node: ir.Node) -> tuple[int, int] | None:
    """Steps along height and width of a Slice that takes nothing else away."""
    if node.op_type != "Slice" or node.domain != "" or len(node.inputs) != 5:
        return None
    found = [literal(model, value) for value in node.inputs[1:]]
    if any(tensor is None for tensor in found):
        return None
    starts, ends, axes, steps = (tensor.numpy().reshape(-1).tolist() for tensor in found if tensor is not None)
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None or len(shape) != 4:
        return None
    step = [1, 1]
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        at = axis % 4
        size = shape[at]
        if at < 2 or start != 0 or stride < 1 or not isinstance(size, int) or end < size:
            return None
        step[at - 2] *= stride
    return step[0], step[1]


def _pads_of_channels(model: ir.Model, node: ir.Node) -> tuple[int, int] | None:
    """Channels of zeros that a Pad adds before and after, if it adds nothing else."""
    mode = node.attributes.get("mode")
    if node.op_type != "Pad" or node.domain != "" or (mode is not None and mode.as_string() != "constant"):
        return None
    given = [*node.inputs, None, None][1:4]
    pads, fill, axes = (literal(model, value) for value in given)
    if pads is None or (given[1] is not None and (fill is None or fill.numpy().any())):
        return None
    if given[2] is not None and axes is None:
        return None
    dims = list(range(4)) if axes is None else [int(axis) % 4 for axis in axes.numpy()]
    amounts = pads.numpy().reshape(-1).tolist()
    if len(amounts) != 2 * len(dims):
        return None
    added = {dim: (amounts[at], amounts[at + len(dims)]) for at, dim in enumerate(dims)}
    found = added.pop(1, (0, 0))
    return (found[0], found[1]) if min(found) >= 0 and not any(map(any, added.values())) else None


def _pool(model: ir.Model, node: ir.Node) -> bool:
    value = node.inputs[0]
    if value is None or _channels(value) is None:
        return False
    axes = literal(model, node.inputs[1]) if len(node.inputs) > 1 else None
    stated = node.attributes.get("axes")
    if axes is not None:
        dims = axes.numpy().tolist()
    elif stated is not None:
        dims = list(stated.as_ints())
    else:
        return False
    if sorted(int(dim) % 4 for dim in dims) != [2, 3]:
        return False
    keeps = node.attributes.get("keepdims")
    result = node.outputs[0]
    if keeps is None or keeps.as_int():
        _replace(model, result, "GlobalAveragePool", [value], {})
    else:
        pooled = ir.Node("", "GlobalAveragePool", [value], name=f"{node.name}_pool")
        pooled.outputs[0].name, pooled.outputs[0].type = f"{result.name}_pooled", result.type
        shape = None if result.shape is None else ir.Shape([*result.shape, 1, 1])
        pooled.outputs[0].shape = shape
        model.graph.insert_before(node, pooled)
        _replace(model, result, "Flatten", [pooled.outputs[0]], {"axis": 1})
    return True


def _channels(value: ir.Value) -> int | None:
    """Channels of a float32 feature map (N, C, H, W); None for anything else, and where it is not known."""
    if value.shape is None:  # a file need not say
        return _computed_channels(value)
    if len(value.shape) != 4 or value.dtype != ir.DataType.FLOAT:
        return None
    channels = value.shape[1]
    return channels if isinstance(channels, int) else None


def _computed_channels(value: ir.Value) -> int | None:
    """Channels by the weights of the convolution that the value comes from, position by position."""
    node = value.producer()
    while node is not None and node.op_type in _POSITION_BY_POSITION and node.domain == "":
        node = next((v.producer() for v in node.inputs if v is not None and v.producer() is not None), None)
    weight = node.inputs[1] if node is not None and node.op_type == "Conv" and node.domain == "" else None
    if weight is None or weight.shape is None or len(weight.shape) != 4 or weight.dtype != ir.DataType.FLOAT:
        return None
    channels = weight.shape[0]
    return channels if isinstance(channels, int) else None


def _replace(
    model: ir.Model,
    result: ir.Value,
    op_type: str,
    inputs: list[ir.Value],
    attributes: dict[str, int | list[int]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Let a new node give `result` in place of the one that did; the name stays."""
    old = result.producer()
    assert old is not None
    new = ir.node(op_type, inputs, attributes=attributes, name=old.name, metadata_props=metadata)
    output, name = new.outputs[0], result.name
    output.shape, output.type = result.shape, result.type
    model.graph.insert_before(old, new)
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    result.name = f"{name}_replaced"
    output.name = name
    if op_type != "Conv":
        model.graph.remove(old, safe=True)

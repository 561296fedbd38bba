"""Make a captured graph cheaper to compute, with the same results up to rounding."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.passes.fx.fold import attribute

__all__ = ["activate_in_place", "fold_norms", "hold_still"]

aten = torch.ops.aten

_LAYERS = {
    aten.linear.default,
    *(getattr(getattr(aten, f"conv{n}d"), overload) for n in (1, 2, 3) for overload in ("default", "padding")),
}
#: Operators that give a tensor of its own, which their gradient does not need.
_FRESH = {*_LAYERS, aten.batch_norm.default, aten.add.Tensor}
#: A channel whose variance is below so many times epsilon hardly varies: what a norm makes of it is its shift.
_STILL = 10.0


def activate_in_place(module: fx.GraphModule) -> None:
    """Let relu write over what nobody else reads, in place; for training as well, where it saves memory.

    Its gradient needs the result alone. For that of relu6 torch would keep a copy.
    """
    for node in module.graph.nodes:
        if node.target is not aten.relu.default:
            continue
        (source,) = node.all_input_nodes
        if source.target in _FRESH and len(source.users) == 1:
            node.target = aten.relu_.default
    module.recompile()


def fold_norms(module: fx.GraphModule, *, live: bool = False) -> None:
    """Fold batch norms of inference into the convolution or linear layer before them, in place.

    The parameters of the module stay as they are. Layers that others read, too, keep their norm. The formula is that of
    `passes.onnx.fold_affine`.

    Args:
        module: a captured graph.
        live: compute the folded weights anew in each pass, so that gradients reach all parameters; else they are
            buffers, computed once in double precision.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.batch_norm.default or node.args[5]:  # training
            continue
        layer = node.all_input_nodes[0]
        if layer.target not in _LAYERS or len(layer.users) > 1:
            continue
        sources: list[Any] = [layer.args[1], layer.args[2] if len(layer.args) > 2 else None, *node.args[1:5]]
        if sources[-1] is None or any(source is not None and source.op != "get_attr" for source in sources):
            continue
        if layer.meta["val"].ndim != attribute(module, sources[0]).ndim:  # a linear layer at several positions
            continue
        if live:
            with graph.inserting_before(layer):
                both = graph.call_function(_folded, (*sources, node.args[7]))
                found = [graph.call_function(operator.getitem, (both, at)) for at in (0, 1)]
        else:
            found = _constants(module, node, sources)
            if not found:
                continue
        layer.args = (layer.args[0], *found, *layer.args[3:])
        node.replace_all_uses_with(layer)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def hold_still(module: fx.GraphModule) -> None:
    """Give no gradient to what comes into norms of inference in channels that hardly vary, in place.

    The statistics of a batch take away what all of its samples have in common, fixed ones do not: there such a channel
    is nothing but a shift, and its gradient is multiplied by up to 1 / sqrt(epsilon). The norm's own shift can learn
    the same. After `fold_norms`, which sees to it in the norms that it folds.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.batch_norm.default or node.args[5] or node.args[4] is None:
            continue
        gamma = None if node.args[1] is None else attribute(module, node.args[1])
        still = attribute(module, node.args[4]) < _STILL * node.args[7]
        if bool((still if gamma is None else still & (gamma != 0)).any()):  # else no gradient comes through anyway
            with module.graph.inserting_before(node):
                held = module.graph.call_function(_held, (node.args[0], node.args[4], node.args[7], 1))
            node.replace_input_with(node.args[0], held)
    module.recompile()


def _held(x: Tensor, variance: Tensor, epsilon: float, dim: int) -> Tensor:
    """`x`, without a gradient where a channel hardly varies; channels are along `dim`."""
    still = variance < _STILL * epsilon
    return torch.where(still.reshape([-1 if d == dim else 1 for d in range(x.ndim)]), x.detach(), x)


@torch.no_grad()
def _constants(module: fx.GraphModule, norm: fx.Node, sources: list[Any]) -> list[fx.Node]:
    """Folded weight and bias as buffers of the module; empty where they are no finite numbers."""
    values: list[Any] = [None if source is None else attribute(module, source).cpu().double() for source in sources]
    values.append(norm.args[7])
    weight = attribute(module, sources[0])
    folded = [tensor.to(weight.dtype) for tensor in _folded(*values)]
    if not all(bool(tensor.isfinite().all()) for tensor in folded):
        return []
    found = []
    for kind, tensor in zip(("weight", "bias"), folded, strict=True):
        module.register_buffer(f"_{norm.name}_{kind}", tensor.to(weight.device))
        with module.graph.inserting_before(norm.all_input_nodes[0]):
            found.append(module.graph.get_attr(f"_{norm.name}_{kind}"))
    return found


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer with the norm after it. Shapes: weight: (channels, ...), all others (channels,).

    Those of the layer get no gradient in channels that hardly vary; see `hold_still`.
    """
    weight = _held(weight, variance, epsilon, 0)
    bias = None if bias is None else _held(bias, variance, epsilon, 0)
    scale = (variance.to(torch.promote_types(variance.dtype, torch.float32)) + epsilon).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = (-mean if bias is None else bias.to(scale.dtype) - mean) * scale
    shift = shift if beta is None else shift + beta
    # Norms may be of more digits than the layers between them.
    return (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype), shift.to(weight.dtype)

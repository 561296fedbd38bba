"""Quantization that is only played, in networks that were trained with it: rounded in float, with ranges as they are.

    y = (clamp(round(x / scale) + zero point) - zero point) * scale

While such a network trains, observers move its ranges with whatever they see, in evaluation mode too unless they are
switched off. What is analyzed, cut and compared has to be one function: here ranges stay what they are.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; torch.ao.quantization.
"""

import copy
import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["is_observed", "names_zero_points", "on_the_grid", "stop_observers", "stop_observing"]

logger = logging.getLogger("graphprune")

aten = torch.ops.aten
_HOME = "torch.ao.quantization.fake_quantize"
_OBSERVING = aten.fused_moving_avg_obs_fake_quant.default
_PER_CHANNEL = aten.fake_quantize_per_channel_affine.default
_PER_TENSOR = aten.fake_quantize_per_tensor_affine.default
_ZERO_POINT = 2  # position among the arguments of both

#: Torch (2.13) has no sizes for what autograd makes of one range a tensor, and so does not export it with gradients.
_LACKING = "aten::fake_quantize_per_tensor_affine_cachemask"
if not torch._C._dispatch_has_kernel_for_dispatch_key(_LACKING, "Meta"):

    def _sizes(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    _library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    _library.impl(_LACKING, _sizes, "Meta")


class FixedRange(nn.Module):
    """What a fake quantization of torch.ao computes that observes nothing.

    One range for the whole tensor is two numbers of its code.

    Args:
        observed: the module of torch.ao.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, observed: Any) -> None:
        super().__init__()
        limits = getattr(observed, "activation_post_process", observed)
        self.limits = int(limits.quant_min), int(limits.quant_max)
        self.axis = int(observed.ch_axis) if getattr(observed, "is_per_channel", False) else None
        scale, zero_point = observed.scale.detach().clone(), observed.zero_point.detach().clone()
        if self.axis is None:
            self.range = float(scale), int(zero_point)
        else:
            self.register_buffer("scale", scale)
            self.register_buffer("zero_point", zero_point)
        self.train(observed.training)

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, rounded to what its scale can hold."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, *self.range, *self.limits)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, *self.limits)


def is_observed(module: nn.Module) -> bool:
    """Is it one of torch.ao's modules that round, and may observe what they round?"""
    home = sys.modules.get(_HOME)  # who has one has imported it
    return home is not None and isinstance(module, home.FakeQuantizeBase)


def stop_observing(model: nn.Module) -> None:
    """Replace the fake quantization inside a model by one with fixed ranges, in place; by nothing where it is off."""
    found = [(owner, name) for owner in model.modules() for name, m in owner.named_children() if is_observed(m)]
    for owner, name in found:
        observed: Any = getattr(owner, name)
        setattr(owner, name, FixedRange(observed) if bool(observed.fake_quant_enabled[0]) else nn.Identity())
    if found:
        logger.info("%d fake quantizations keep the ranges that they have: nothing is observed", len(found))


def stop_observers(module: fx.GraphModule) -> None:
    """The same for a captured graph, in which observing and rounding are one operator."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for node in list(module.graph.nodes):
        if node.target is not _OBSERVING:
            continue
        x, _, is_on, _, _, scale, zero_point, _, low, high, axis, *more = node.args
        if not bool(tensors[str(is_on.target)].any()):
            node.replace_all_uses_with(x)
        else:
            is_per_channel = more[:1] == [True]
            target = _PER_CHANNEL if is_per_channel else _PER_TENSOR
            one = float(tensors[str(scale.target)].ravel()[0]), int(tensors[str(zero_point.target)].ravel()[0])
            arguments = (x, scale, zero_point, axis, low, high) if is_per_channel else (x, *one, low, high)
            with module.graph.inserting_before(node):
                rounded = module.graph.call_function(target, arguments)
            rounded.meta = dict(node.meta)
            node.replace_all_uses_with(rounded)
        module.graph.erase_node(node)
    module.recompile()


def names_zero_points(node: fx.Node) -> bool:
    """Does a node give the zero points of channels, one each? They are integers, but go with their channels."""
    return any(user.target is _PER_CHANNEL and user.args[_ZERO_POINT] is node for user in node.users)


@torch.no_grad()
def on_the_grid(module: fx.GraphModule) -> fx.GraphModule:
    """The graph with weights that are rounded to a scale on its grid already; itself where none is rounded.

    It computes the same, to the bit. The largest weight of a symmetric range stands just between two steps, so that who
    divides by the scale and who multiplies by its inverse go different ways; what is on the grid goes neither.
    """
    if not any(_rounds_weight(node) for node in module.graph.nodes):
        return module
    module = copy.deepcopy(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for node in filter(_rounds_weight, list(module.graph.nodes)):
        source: Any = node.args[0]
        rounded = _evaluated(node, tensors)
        if source.op == "get_attr" and len(source.users) == 1:
            tensors[str(source.target)].copy_(rounded)
            continue
        name = f"{node.name}_rounded"
        module.register_buffer(name, rounded)
        with module.graph.inserting_before(node):
            held = module.graph.get_attr(name)
        held.meta["val"] = source.meta.get("val")
        node.update_arg(0, held)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _rounds_weight(node: fx.Node) -> bool:
    return node.target in (_PER_CHANNEL, _PER_TENSOR) and all(map(_is_constant, node.all_input_nodes))


def _is_constant(node: fx.Node) -> bool:
    """Is it made of parameters and buffers alone?"""
    if node.op != "call_function":
        return node.op == "get_attr"
    return bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


def _evaluated(node: fx.Node, tensors: Mapping[str, Tensor]) -> Tensor:
    if node.op == "get_attr":
        return tensors[str(node.target)]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda part: _evaluated(part, tensors))
    target: Any = node.target
    return target(*args, **kwargs)

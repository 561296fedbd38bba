"""Normalizations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator

__all__ = ["OPERATORS"]


def _batch_norm(call: Call) -> Tensor:
    if call.attr("training_mode", 0) or call.attr("is_test", 1) == 0:
        raise call.refuse("it is in training mode")
    x, scale, shift, mean, variance = (call.tensor(at) for at in range(5))
    momentum = 1.0 - call.attr("momentum", 0.9)
    return F.batch_norm(x, mean, variance, scale, shift, call.trained, momentum, call.attr("epsilon", 1e-5))


def _instance_norm(call: Call) -> Tensor:
    x, scale, shift = (call.tensor(at) for at in range(3))
    # Not by `F.instance_norm`, which refuses maps of one position: what is left of those is the shift.
    return torch.instance_norm(x, scale, shift, None, None, True, 0.1, call.attr("epsilon", 1e-5), False)


def _group_norm(call: Call) -> Tensor:
    x, scale, shift = call.tensor(0), call.tensor(1), call.tensor(2)
    groups, channels = call.attr("num_groups"), x.shape[1]
    if call.opset < 21 and scale.shape[0] != channels:  # one number a group
        scale, shift = (v.repeat_interleave(channels // groups) for v in (scale, shift))
    return F.group_norm(x, groups, scale, shift, call.attr("epsilon", 1e-5))


def _layer_norm(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attr("axis", -1) % x.dim()
    if len(call.node.outputs) > 1 and any(out.uses() for out in call.node.outputs[1:]):
        raise call.refuse("its mean or deviation is read")
    return F.layer_norm(x, x.shape[axis:], call.tensor(1), call.optional(2), call.attr("epsilon", 1e-5))


def _rms_norm(call: Call) -> Tensor:
    x = call.tensor(0)
    axes = list(range(call.attr("axis", -1) % x.dim(), x.dim()))
    squares = x.square().mean(axes, keepdim=True)
    return x * torch.rsqrt(squares + call.attr("epsilon", 1e-5)) * call.tensor(1)


def _lrn(call: Call) -> Tensor:
    return F.local_response_norm(
        call.tensor(0), call.attr("size"), call.attr("alpha", 1e-4), call.attr("beta", 0.75), call.attr("bias", 1.0)
    )


def _lp_norm(call: Call) -> Tensor:
    return F.normalize(
        call.tensor(0), float(call.attr("p", 2)), call.attr("axis", -1), eps=1e-30
    )  # of zeros it is zeros


def _mean_variance(call: Call) -> Tensor:
    x, axes = call.tensor(0), call.attr("axes", [0, 2, 3])
    centered = x - x.mean(axes, keepdim=True)
    return centered / (torch.sqrt(centered.square().mean(axes, keepdim=True)) + 1e-9)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _lrn,
    "RMSNormalization": _rms_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
}

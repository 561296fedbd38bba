"""Writing a solution into a layer and the batch norm behind it.

    s (W x + c − mean) + shift  =  W' x + b'         with  W = W' / s,  mean = E[W x + c],  variance = Var[W x + c]

The norm's statistics become those of what it really sees, and its scale and shift follow: so the network computes the
same in training as in inference, and statistics that are measured anew come out as they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from graphprune.reconstruction.curves import norm_scale
from graphprune.reconstruction.fit import Fit
from graphprune.reconstruction.layers import Layer

__all__ = ["write"]

_LEAST = 1e-2  # of the median scale: what is smaller is not divided by


@torch.no_grad()
def write(layer: Layer, tensors: Mapping[str, Tensor], fit: Fit) -> None:
    """Let a layer compute what was found.

    Args:
        layer: the layer.
        tensors: parameters and buffers of the network, by name; changed in place.
        fit: the solution.
    """
    held, shift = tensors[layer.weight], fit.bias.flatten()
    if layer.norm is None:
        held.copy_(layer.weight_of(fit.weight, held.shape))
        if layer.bias is not None:
            tensors[layer.bias].copy_(shift)
        return
    norm = layer.norm
    scale = norm_scale(layer, tensors)
    own = torch.zeros_like(shift) if layer.bias is None else tensors[layer.bias].double()
    if norm.weight is not None:
        least = _LEAST * scale.abs().median().clamp_min(1e-6)
        scale = torch.where(scale.abs() < least, torch.where(scale < 0, -least, least), scale)
    held.copy_(layer.weight_of(fit.weight / scale.reshape(len(fit.weight), 1, -1), held.shape))
    if norm.weight is None or norm.bias is None:
        before = 0.0 if norm.bias is None else tensors[norm.bias].double()
        if norm.weight is not None:
            tensors[norm.weight].copy_(scale * (tensors[norm.variance].double() + norm.epsilon).sqrt())
        tensors[norm.mean].copy_(own - (shift - before) / scale)
        return
    mean, variance = fit.mean.flatten() / scale, fit.variance.flatten() / scale.square()
    tensors[norm.mean].copy_(mean + own)
    tensors[norm.variance].copy_(variance)
    tensors[norm.weight].copy_(scale * (variance + norm.epsilon).sqrt())
    tensors[norm.bias].copy_(shift + scale * mean)

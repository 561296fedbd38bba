"""Random weights and inputs that hide nothing.

A fresh network has layers that are zero, one or nearly zero by design: the last normalization of a residual
branch, layer scales of 1e-6, tables of relative positions. Others lose the image on the way, and their output
is a constant made of biases; all the more so when half of their channels are gone. What such layers multiply
could be cut wrong unseen. So everything constant is made random, and the layers of the masked network are
scaled one after another to what images make of them (the idea of LSUV initialization, Mishkin and Matas 2016).
Shifts of batch norms are positive, so that most units work on the straight part of their activation: otherwise
deep random networks are chaotic, and rounding alone grows from 1e-7 to 1e-4 and more on its way through them.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import graphprune as gp

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Make constant parameters and the statistics of batch norms random, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.numel() == 0 or float(parameter.min()) != float(parameter.max()):
            continue
        if abs(float(parameter.flatten()[0])) < 1e-2:
            parameter.normal_(0.0, 0.2, generator=generator)
        else:
            parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5, generator=generator))
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(0.0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if isinstance(getattr(module, "bias", None), torch.Tensor):
                module.bias.uniform_(0.5, 2.0, generator=generator)


@torch.no_grad()
def masked(model: nn.Module, plan: gp.PruningPlan) -> nn.Module:
    """A copy with zeros where the plan cuts: the reference, made here from the plan alone."""
    result = copy.deepcopy(model)
    for name, tensor in _tensors(result).items():
        for dim, indices in plan.removed.get(name, {}).items():
            if tensor.is_floating_point():
                tensor.index_fill_(dim, torch.tensor(indices), 0.0)
    return result


@torch.no_grad()
def calibrate(model: nn.Module, plan: gp.PruningPlan, inputs: tuple[torch.Tensor, ...], seed: int) -> None:
    """Scale the layers so that images reach the output of the masked model; what is masked stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    scaled = masked(model, plan)
    hooks = []
    for module in scaled.modules():
        if isinstance(module, _LAYERS):
            hooks.append(module.register_forward_hook(_scale_layer))
        elif isinstance(getattr(module, "running_mean", None), torch.Tensor):
            hooks.append(module.register_forward_pre_hook(_statistics(generator)))
    scaled(*(images(x.shape, 2, generator) for x in inputs))
    for hook in hooks:
        hook.remove()
    known = _tensors(scaled)
    for name, tensor in _tensors(model).items():
        if name not in known or known[name].shape != tensor.shape or _overlaps(tensor):
            continue  # tables that a model makes anew in forward (ConViT's distances of patches)
        fresh = known[name].clone()
        for dim, indices in plan.removed.get(name, {}).items():
            gone = torch.tensor(indices)
            fresh.index_copy_(dim, gone, tensor.index_select(dim, gone))
        tensor.copy_(fresh)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def _overlaps(tensor: torch.Tensor) -> bool:
    """Several elements share one place in memory (an expanded tensor)."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def images(shape: torch.Size, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth random patterns with some noise: unlike white noise, they are not all alike after pooling."""
    coarse = torch.randn(batch, shape[1], 7, 7, generator=generator)
    smooth = functional.interpolate(coarse, shape[2:], mode="bicubic", align_corners=False)
    return smooth + 0.5 * torch.randn(batch, *shape[1:], generator=generator)


def _scale_layer(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
    """Scale a layer so that what it adds to its bias has a mean square of 1."""
    channel = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
    bias = 0.0 if layer.bias is None else layer.bias.view([-1 if d == channel else 1 for d in range(output.dim())])
    size = float((output - bias).pow(2).mean().sqrt())
    if not 1e-6 < size < 1e6:
        return None
    layer.weight.div_(size)
    return (output - bias) / size + bias


def _statistics(generator: torch.Generator) -> Any:
    """A hook that sets the statistics of a batch norm to those of its input, and then some way off."""

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        dims = [d for d in range(x.dim()) if d != 1]
        # Two images are few: channels that they hardly move must not be blown up, or other images overflow.
        least = 0.3 * x.pow(2).mean().sqrt().clamp_min(1e-2)
        deviation = torch.maximum(x.std(dim=dims, correction=0), least)
        noise = torch.randn(deviation.shape, generator=generator)
        module.running_mean.copy_(x.mean(dim=dims) + 0.2 * deviation * noise)
        factor = torch.empty_like(deviation).uniform_(1.0, 2.0, generator=generator)
        module.running_var.copy_(deviation.pow(2) * factor)

    return hook


def flat_outputs(outputs: object) -> list[torch.Tensor]:
    """The tensors in what a model returned."""
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def largest_difference(reference: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest difference of any output relative to that output's largest value; infinite for other shapes or NaN."""
    if [x.shape for x in reference] != [x.shape for x in other]:
        return float("inf")
    worst = 0.0
    for expected, found in zip(reference, other, strict=True):
        if not (torch.isfinite(expected).all() and torch.isfinite(found).all()):
            return float("inf")
        scale = max(float(expected.abs().max()), 1e-30)
        worst = max(worst, float((expected - found).abs().max()) / scale)
    return worst

"""What a model gives: its tensors, how far two of them are apart, and along which dimension they hold the samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.passes.fx.device import device_of, inputs_on


def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors that a model gives, flat and on the CPU, without gradients; the model's mode is kept.

    Inputs may be on another device than the model.
    """
    with torch.no_grad():
        outputs = model(*inputs_on(device_of(model), inputs))
    flat, _ = pytree.tree_flatten(outputs)
    return [x.cpu() for x in flat if isinstance(x, torch.Tensor)]


def difference(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference relative to the largest reference value; infinite for other shapes, NaN or Inf."""
    if reference.shape != other.shape:
        return float("inf")
    if reference.numel() == 0:
        return 0.0
    if not (reference.is_floating_point() or reference.is_complex()):
        return 0.0 if torch.equal(reference, other) else float("inf")
    if not (torch.isfinite(reference).all() and torch.isfinite(other).all()):
        same = torch.equal(torch.nan_to_num(reference), torch.nan_to_num(other))
        return 0.0 if same and torch.equal(reference.isnan(), other.isnan()) else float("inf")
    scale = max(float(reference.abs().max()), 1e-12)
    return float((reference - other).abs().max()) / scale


def sample_dims(apart: Sequence[torch.Tensor], joint: torch.Tensor, tolerance: float) -> tuple[int, ...] | None:
    """The dimension along which an output holds the samples: (0,) for most, () where it has none.

    Args:
        apart: the output for each of two or more samples by itself.
        joint: the output for all of them in one batch.
        tolerance: difference up to which both are the same, relative to the largest value.

    Returns:
        None where the two are not the same, whichever way they are compared.
    """
    first, count = apart[0], len(apart)
    if first.dim() != joint.dim():
        return None
    if first.shape == joint.shape and all(difference(each, joint) <= tolerance for each in apart):
        return ()
    for dim in range(first.dim()):
        if first.shape[dim] * count == joint.shape[dim] and difference(torch.cat(list(apart), dim), joint) <= tolerance:
            return (dim,)
    return None

"""What a model gives: its tensors, how far two of them are apart, and along which dimension they hold the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.passes.fx.device import device_of, inputs_on

_SAME = 1e-3  # difference of two results, relative to the largest value; other batch sizes take other kernels


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


@dataclass(frozen=True)
class Layout:
    """How an output holds the samples of a batch.

    Attributes:
        shape: of the output for the whole batch.
        dims: the dimension along which the samples lie: (0,) for most, () where the output is the same for all; None
            where a batch gives something else than its samples by themselves.
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...] | None


def layouts(model: nn.Module, samples: Sequence[tuple[Any, ...]]) -> list[Layout]:
    """How each output of a model holds samples, seen by running them together and one by one.

    Inputs and buffers, which may be those of a user, stay as they are where the model writes to them.

    Args:
        model: what to run, in the mode it is in.
        samples: the inputs of two or more samples, each a batch of 1.
    """
    joint, *apart = _results(model, [joined(samples), *samples])
    return [
        Layout(tuple(whole.shape), _dims(each, whole))
        for whole, each in zip(joint, zip(*apart, strict=True), strict=True)
    ]


def repeats(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Does a model give the same twice?"""
    once, again = _results(model, [inputs, inputs])
    return all(difference(a, b) <= _SAME for a, b in zip(once, again, strict=True))


def joined(samples: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The inputs of several samples as those of one batch."""
    columns = zip(*samples, strict=True)
    return tuple(torch.cat(column) if _has_batch(column[0]) else column[0] for column in columns)


def turned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs that a model takes as well, made of others: mirrored."""
    return tuple(x.flip(-1) if _has_batch(x) else x for x in inputs)


def is_single(inputs: tuple[Any, ...]) -> bool:
    """Are these the inputs of a batch of 1?"""
    sizes = [x.shape[0] for x in inputs if _has_batch(x)]
    return bool(sizes) and all(size == 1 for size in sizes)


def _has_batch(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() > 0


def _results(model: nn.Module, calls: Sequence[tuple[Any, ...]]) -> list[list[torch.Tensor]]:
    held = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        return [run(model, tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in call)) for call in calls]
    finally:
        for buffer, before in held.items():
            buffer.copy_(before)


def _dims(apart: Sequence[torch.Tensor], joint: torch.Tensor) -> tuple[int, ...] | None:
    first = apart[0]
    if first.shape == joint.shape and all(difference(each, joint) <= _SAME for each in apart):
        return ()
    for dim in range(first.dim()):
        # `difference` is infinite for another shape.
        if difference(torch.cat(list(apart), dim), joint) <= _SAME:
            return (dim,)
    return None

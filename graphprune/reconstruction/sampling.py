"""Rows of a least-squares problem: what a layer reads and gives at a few positions of every image.

Positions are functions of the layer and of the number of the batch, so that teacher and student are seen at the same
ones. Rows of one image resemble each other: few positions of many images are worth more than many of few.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graphprune.reconstruction.layers import Layer

__all__ = ["centre", "pick", "positions", "rows"]


def positions(layer: Layer, shape: Sequence[int], images: int, number: int, batch: int) -> Tensor:
    """(samples, positions) flat positions of a layer's result to look at.

    Args:
        layer: the layer.
        shape: of its result for a batch.
        images: in the batch; where the result holds several samples of each, each has fewer positions.
        number: of positions of an image.
        batch: its number.
    """
    inner = math.prod(shape[2:] if layer.is_conv else shape[1:-1])
    each = max(1, number * images // max(shape[0], 1))
    if inner <= each:
        return torch.arange(inner).expand(shape[0], -1)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{layer.name} {batch}".encode()))
    return torch.randint(0, inner, (shape[0], each), generator=generator)


def pick(value: Tensor, at: Tensor, *, is_conv: bool) -> Tensor:
    """(samples * positions, channels) of a result. Shapes: at (samples, positions)."""
    flat = _by_position(value, is_conv)
    return flat.index_select(0, _offset(at, len(value), len(flat)).flatten())


def rows(layer: Layer, value: Tensor, at: Tensor, shape: Sequence[int], kernel: Sequence[int], groups: int) -> Tensor:
    """(groups, samples * positions, taps * inputs of a group): what a layer reads for each position of its result.

    Args:
        layer: the layer.
        value: what it reads.
        at: (samples, positions) flat positions of its result.
        shape: of its result.
        kernel: sizes of its kernel.
        groups: how many it has now.
    """
    if not layer.is_conv:
        return pick(value, at, is_conv=False)[None]
    flat = _by_position(value, True)
    if math.prod(kernel) == 1 and not any(layer.padding) and layer.kind == "conv" and set(layer.stride) == {1}:
        found = flat.index_select(0, _offset(at, len(value), len(flat)).flatten())[:, None]
    else:
        where, inside = _taps(layer, at, shape[2:], value.shape[2:], kernel)
        where = _offset(where.flatten(1), len(value), len(flat)).view(-1)
        found = flat.index_select(0, where).view(at.numel(), -1, flat.shape[1])
        if not bool(inside.all()):
            found[~inside.reshape(at.numel(), -1)] = 0
    if groups == 1:
        return found.flatten(1)[None]
    apart = found.view(len(found), found.shape[1], groups, -1)
    return apart.permute(2, 0, 1, 3).flatten(2)


def centre(layer: Layer, value: Tensor, at: Tensor, shape: Sequence[int], kernel: Sequence[int]) -> Tensor:
    """(samples * positions, channels): what a convolution of one group reads under the middle of its kernel."""
    middle = zip(layer.padding, layer.dilation, kernel, strict=True)
    moved = replace(layer, padding=tuple(before - step * (size // 2) for before, step, size in middle))
    return rows(moved, value, at, shape, (1,) * len(kernel), 1)[0]


def _by_position(value: Tensor, is_conv: bool) -> Tensor:
    """(samples * positions, channels); a view where channels lie innermost."""
    return (value.movedim(1, -1) if is_conv else value).reshape(-1, value.shape[1 if is_conv else -1])


def _offset(at: Tensor, samples: int, total: int) -> Tensor:
    return at + (torch.arange(samples) * (total // max(samples, 1)))[:, None]


def _taps(
    layer: Layer, at: Tensor, sizes: Sequence[int], read: Sequence[int], kernel: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(samples, positions, taps) flat positions of the input under each tap, and whether they are inside of it."""
    where, inside = at.new_zeros(()), torch.ones((), dtype=torch.bool)
    dims = len(kernel)
    for dim, size in enumerate(kernel):
        coordinate = at // math.prod(sizes[dim + 1 :]) % sizes[dim]
        step, before, apart = layer.stride[dim], layer.padding[dim], layer.dilation[dim]
        tap = torch.arange(size) * apart
        if layer.kind == "transposed":
            spread = coordinate[..., None] + before - tap
            fits, found = spread % step == 0, torch.div(spread, step, rounding_mode="floor")
        else:
            found = coordinate[..., None] * step - before + tap
            fits = torch.ones_like(found, dtype=torch.bool)
        fits &= (found >= 0) & (found < read[dim])
        view = (*at.shape, *(size if d == dim else 1 for d in range(dims)))
        where = where * read[dim] + found.clamp(0, read[dim] - 1).view(view)
        inside = inside & fits.view(view)
    return where.flatten(2), inside.flatten(2)

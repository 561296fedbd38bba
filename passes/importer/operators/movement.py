"""Operators that move numbers and compute none: shapes are Python numbers, so that they can be captured."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result

__all__ = ["OPERATORS"]

_FAR = 1 << 62  # ends of slices beyond it mean "to the end"
_PADDINGS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _reshape(call: Call) -> Result:
    wanted = call.attr("shape") if call.opset < 5 else call.numbers(1)
    if isinstance(call.inputs[0], np.ndarray):
        return call.static(0).reshape([int(size) for size in wanted])
    x = call.tensor(0)
    wanted = call.lifted(wanted, x)
    if not call.attr("allowzero", 0):
        wanted = [x.shape[at] if _is(size, 0) else size for at, size in enumerate(wanted)]
    return x.reshape(wanted)


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _flatten(call: Call) -> Tensor:
    x = call.tensor(0)
    axis = call.attr("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    return x.reshape(1, -1) if axis == 0 else x.flatten(0, axis - 1).flatten(1) if axis < x.dim() else x.reshape(-1, 1)


def _transpose(call: Call) -> Result:
    if isinstance(call.inputs[0], np.ndarray):
        return call.static(0).transpose(call.attr("perm"))
    x = call.tensor(0)
    return x.permute(call.attr("perm", list(reversed(range(x.dim())))))


def _concat(call: Call) -> Result:
    axis = call.attr("axis", 1)
    if call.is_static:
        return np.concatenate([call.static(at).astype(object) for at in range(len(call.inputs))], axis)
    tensors = [v for v in call.inputs if isinstance(v, Tensor)]
    return torch.cat([call.tensor(at, tensors[0]) for at in range(len(call.inputs))], axis)


def _split(call: Call) -> Result:
    axis = call.attr("axis", 0)
    sizes = call.attr("split") if call.opset < 13 else (call.numbers(1) if call.has(1) else None)
    count = len(call.node.outputs)
    if call.is_static:
        array = call.static(0)
        parts = [int(s) for s in sizes] if sizes else [array.shape[axis] // count] * count
        return [np.asarray(part) for part in np.split(array, np.cumsum(parts)[:-1], axis)]
    x = call.tensor(0)
    if sizes is None:
        each = -(-x.shape[axis] // call.attr("num_outputs", count))
        sizes = [each] * (count - 1)
        sizes.append(x.shape[axis] - each * (count - 1))
    return list(torch.split(x, sizes, axis))


def _squeeze(call: Call) -> Result:
    value = call.inputs[0]
    rank = value.ndim if isinstance(value, np.ndarray) else call.tensor(0).dim()
    axes = call.axes(rank)
    if isinstance(value, np.ndarray):
        return value.squeeze(None if axes is None else tuple(axes))
    x = call.tensor(0)
    if axes is None:
        axes = [dim for dim, size in enumerate(x.shape) if _is(size, 1)]
    return x.squeeze(axes) if axes else x


def _unsqueeze(call: Call) -> Result:
    value = call.inputs[0]
    rank = value.ndim if isinstance(value, np.ndarray) else call.tensor(0).dim()
    given = call.numbers(1) if call.has(1) else call.attr("axes")
    axes = sorted(int(axis) % (rank + len(given)) for axis in given)
    if isinstance(value, np.ndarray):
        return np.expand_dims(value, tuple(axes))
    x = call.tensor(0)
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def _expand(call: Call) -> Result:
    wanted = call.numbers(1)
    if isinstance(call.inputs[0], np.ndarray) and all(isinstance(size, int) for size in wanted):
        return np.broadcast_to(call.static(0), np.broadcast_shapes(call.static(0).shape, tuple(wanted)))
    x = call.tensor(0)
    wanted = call.lifted(wanted, x) if x.dim() == len(wanted) else wanted
    sizes: list[Any] = [1] * (len(wanted) - x.dim()) + list(x.shape)
    wanted = [1] * (len(sizes) - len(wanted)) + wanted
    # A size of 1 in the request keeps what is there.
    return x.expand([have if _is(want, 1) else want for have, want in zip(sizes, wanted, strict=True)])


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat(call.numbers(1))


def _slice(call: Call) -> Result:
    if call.opset < 10:
        starts, ends = call.attr("starts"), call.attr("ends")
        axes, steps = call.attr("axes"), None
    else:
        starts, ends = call.numbers(1), call.numbers(2)
        axes = call.numbers(3) if call.has(3) else None
        steps = call.numbers(4) if call.has(4) else None
    value = call.inputs[0]
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if isinstance(value, np.ndarray):
        index: list[Any] = [slice(None)] * value.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            stop = None if step < 0 and end < -value.shape[axis] else int(end)
            index[axis] = slice(int(start), stop, int(step))
        return value[tuple(index)]
    x = call.tensor(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            size = int(x.shape[axis])
            first = min(start + size if start < 0 else start, size - 1)
            last = max(end + size if end < 0 else end, -1)
            picked = torch.arange(first, last, step)
            x = x.flip(axis) if len(picked) == size and step == -1 else x.index_select(axis, picked)
            continue
        whole = isinstance(end, int) and end >= _FAR
        x = torch.ops.aten.slice.Tensor(x, axis, start, None if whole else end, step)
    return x


def _pad(call: Call) -> Tensor:
    x = call.tensor(0)
    pads = call.numbers(1) if call.opset >= 11 else call.attr("pads", call.attr("paddings"))
    value = (call.number(2, 0.0) if call.has(2) else 0.0) if call.opset >= 11 else call.attr("value", 0.0)
    axes = [int(axis) % x.dim() for axis in call.numbers(3)] if call.has(3) else list(range(x.dim()))
    before, behind = [0] * x.dim(), [0] * x.dim()
    for at, axis in enumerate(axes):
        before[axis], behind[axis] = int(pads[at]), int(pads[at + len(axes)])
    flat = [amount for pair in reversed(list(zip(before, behind, strict=True))) for amount in pair]
    mode = call.attr("mode", "constant")
    if mode == "constant":
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, value=float(value))
    is_map = 3 <= x.dim() <= 5 and not any(flat[2 * (x.dim() - 2) :])
    if is_map and mode in _PADDINGS:
        return F.pad(x, flat[: 2 * (x.dim() - 2)], mode=_PADDINGS[mode])
    for axis in (axis for axis in range(x.dim()) if before[axis] or behind[axis]):
        x = _picked(call, x, axis, (before[axis], behind[axis]), mode)
    return x


def _picked(call: Call, x: Tensor, axis: int, amounts: tuple[int, int], mode: str) -> Tensor:
    """One axis padded with what it holds itself: mirrored, repeated at its ends, or from its other end."""
    size = x.shape[axis]
    if not isinstance(size, int):
        raise call.refuse(f"{mode} padding of samples")
    if min(amounts) < 0 or mode not in _PADDINGS:
        raise call.refuse(f"{mode} padding by {amounts[0]} and {amounts[1]}")
    index = np.pad(np.arange(size), amounts, mode=mode)  # type: ignore[call-overload]  # a mode known only now
    return x.index_select(axis, torch.from_numpy(index))


def _depth_to_space(call: Call) -> Tensor:
    x, size = call.tensor(0), call.attr("blocksize")
    if call.attr("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // size**2, height * size, width * size)


def _space_to_depth(call: Call) -> Tensor:
    x, size = call.tensor(0), call.attr("blocksize")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * size**2, height // size, width // size)


def _trilu(call: Call) -> Tensor:
    k = int(call.number(1, 0))
    return (torch.triu if call.attr("upper", 1) else torch.tril)(call.tensor(0), k)


def _reverse(call: Call) -> Tensor:
    raise call.refuse("sequences of their own lengths")


OPERATORS: dict[str, Operator] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
}

"""Resizing of maps: by torch's own kernels where they mean the same, else by weights along each axis."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator

__all__ = ["OPERATORS"]


def _resize(call: Call) -> Tensor:
    x = call.tensor(0)
    if call.kind == "Upsample":
        scales = call.attr("scales") if call.opset < 9 else call.numbers(1)
        return _resized(call, x, list(range(x.dim())), scales, None, "asymmetric", "floor")
    if call.opset < 11:
        return _resized(call, x, list(range(x.dim())), call.numbers(1), None, "asymmetric", "floor")
    axes = [axis % x.dim() for axis in call.attr("axes", list(range(x.dim())))]
    mode = call.attr("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        raise call.refuse("it cuts a region out")
    if call.attr("antialias", 0):
        raise call.refuse("it smooths what it makes smaller")
    if call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("it keeps the aspect ratio")
    scales = call.numbers(2) if call.has(2) and call.static(2).size else None
    sizes = call.numbers(3) if call.has(3) else None
    return _resized(call, x, axes, scales, sizes, mode, call.attr("nearest_mode", "round_prefer_floor"))


def _resized(
    call: Call, x: Tensor, axes: list[int], scales: list[Any] | None, sizes: list[Any] | None, mode: str, rounding: str
) -> Tensor:
    before = {axis: x.shape[axis] for axis in axes}
    after = {
        axis: sizes[at] if sizes is not None else _scaled(before[axis], scales[at]) if scales else before[axis]
        for at, axis in enumerate(axes)
    }
    ratio = {axis: scales[at] if scales else None for at, axis in enumerate(axes)}
    changed = [axis for axis in axes if _differs(before[axis], after[axis], ratio[axis])]
    if not changed:
        return x
    kind = call.attr("mode", "nearest")
    spatial = list(range(2, x.dim()))
    size = [int(after.get(axis, x.shape[axis])) for axis in spatial]
    is_map = set(changed) <= set(spatial) and 3 <= x.dim() <= 5
    exact = all(ratio[axis] is None or abs(before[axis] * (ratio[axis] or 0) - after[axis]) < 1e-6 for axis in changed)
    whole = all(after[axis] % before[axis] == 0 for axis in changed)
    repeats = (mode, rounding) in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    if is_map and kind == "nearest" and whole and exact and repeats:  # every position is repeated
        return F.interpolate(x, size=size, mode="nearest")
    centered = mode in ("half_pixel", "align_corners") or (
        mode == "pytorch_half_pixel" and all(after[axis] > 1 for axis in changed)
    )
    if is_map and kind == "linear" and exact and centered:
        names = {3: "linear", 4: "bilinear", 5: "trilinear"}
        return F.interpolate(x, size=size, mode=names[x.dim()], align_corners=mode == "align_corners")
    if kind not in ("nearest", "linear"):
        if (
            is_map
            and kind == "cubic"
            and x.dim() == 4
            and exact
            and call.attr("cubic_coeff_a", -0.75) == -0.75
            and mode in ("half_pixel", "align_corners")
            and not call.attr("exclude_outside", 0)
        ):
            return F.interpolate(x, size=size, mode="bicubic", align_corners=mode == "align_corners")
        raise call.refuse(f"{kind} interpolation of this form")
    for axis in changed:
        x = _along(x, axis, int(after[axis]), ratio[axis], kind, mode, rounding)
    return x


def _scaled(size: Any, scale: Any) -> Any:
    if isinstance(size, torch.SymInt) and scale == 1:
        return size
    return math.floor(size * scale)


def _differs(before: Any, after: Any, ratio: Any) -> bool:
    if isinstance(before, torch.SymInt) or isinstance(after, torch.SymInt):
        return not (ratio is None or ratio == 1)
    return bool(before != after)


def _along(x: Tensor, axis: int, size: int, ratio: float | None, kind: str, mode: str, rounding: str) -> Tensor:
    """One axis resized: places of the result in the input by ONNX's definition, in float32 as onnxruntime does."""
    length = int(x.shape[axis])
    scale = np.float32(size / length if ratio is None else ratio)
    at = np.arange(size, dtype=np.float32)
    if mode == "align_corners":
        place = at * np.float32((length - 1) / (size - 1)) if size > 1 else np.zeros(size, np.float32)
    elif mode == "asymmetric":
        place = at / scale
    elif mode == "half_pixel_symmetric":
        adjust = np.float32(size) / (np.float32(length) * scale)
        center = np.float32(length) / 2
        place = center * (1 - adjust) + (at + np.float32(0.5)) / scale - np.float32(0.5)
    elif mode == "pytorch_half_pixel" and size == 1:
        place = np.zeros(size, np.float32)
    else:
        place = (at + np.float32(0.5)) / scale - np.float32(0.5)
    if kind == "nearest":
        rounded = {
            "floor": np.floor(place),
            "ceil": np.ceil(place),
            "round_prefer_ceil": np.floor(place + np.float32(0.5)),
            "round_prefer_floor": np.ceil(place - np.float32(0.5)),
        }[rounding]
        index = np.clip(rounded, 0, length - 1).astype(np.int64)
        return x.index_select(axis, torch.from_numpy(index))
    low = np.floor(np.clip(place, 0, length - 1))
    high = np.minimum(low + 1, length - 1)
    share = torch.from_numpy((np.clip(place, 0, length - 1) - low).astype(np.float32)).to(x.dtype)
    share = share.reshape([-1 if dim == axis else 1 for dim in range(x.dim())])
    first = x.index_select(axis, torch.from_numpy(low.astype(np.int64)))
    second = x.index_select(axis, torch.from_numpy(high.astype(np.int64)))
    return first * (1 - share) + second * share


OPERATORS: dict[str, Operator] = {"Resize": _resize, "Upsample": _resize}

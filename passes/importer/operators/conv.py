"""Convolutions and transposed convolutions of one to three dimensions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator

__all__ = ["OPERATORS", "padding_of", "split_padding"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def padding_of(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Zeros before and behind each spatial dimension, from `pads` or `auto_pad`."""
    rank, mode = len(kernel), call.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, behind = [], []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            less, more = total // 2, total - total // 2
            before.append(less if mode == "SAME_UPPER" else more)
            behind.append(more if mode == "SAME_UPPER" else less)
        return before, behind
    pads = [0] * (2 * rank) if mode == "VALID" else [int(p) for p in call.attr("pads", [0] * (2 * rank))]
    return pads[:rank], pads[rank:]


def split_padding(
    x: Tensor, before: Sequence[int], behind: Sequence[int], value: float = 0.0
) -> tuple[Tensor, list[int]]:
    """The input, and the symmetric padding that is left to the operator itself: none where it is not symmetric."""
    if list(before) == list(behind):
        return x, list(before)
    flat = [amount for pair in reversed(list(zip(before, behind, strict=True))) for amount in pair]
    return F.pad(x, flat, value=value), [0] * len(before)


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor(0), call.tensor(1)
    rank = weight.dim() - 2
    if rank not in _CONV:
        raise call.refuse(f"convolutions of {rank} dimensions are not known")
    stride = call.attr("strides", [1] * rank)
    dilation = call.attr("dilations", [1] * rank)
    before, behind = padding_of(call, x.shape[2:], list(weight.shape[2:]), stride, dilation)
    x, padding = split_padding(x, before, behind)
    result: Tensor = _CONV[rank](x, weight, call.optional(2), stride, padding, dilation, call.attr("group", 1))
    return result


def _conv_transpose(call: Call) -> Tensor:
    x, weight = call.tensor(0), call.tensor(1)
    rank = weight.dim() - 2
    if rank not in _TRANSPOSE:
        raise call.refuse(f"convolutions of {rank} dimensions are not known")
    kernel = list(weight.shape[2:])
    stride, dilation = call.attr("strides", [1] * rank), call.attr("dilations", [1] * rank)
    extra = call.attr("output_padding", [0] * rank)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], kernel, stride, dilation, extra, strict=True)
    ]
    mode, wanted = call.attr("auto_pad", "NOTSET"), call.attr("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is not None:
        total = [max(0, f - w) for f, w in zip(full, wanted[-rank:], strict=True)]
        less = [t // 2 for t in total]
        more = [t - h for t, h in zip(total, less, strict=True)]
        before, behind = (less, more) if mode == "SAME_UPPER" else (more, less)
    else:
        pads = call.attr("pads", [0] * (2 * rank))
        before, behind = pads[:rank], pads[rank:]
    group = call.attr("group", 1)
    if before == behind and all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        result: Tensor = _TRANSPOSE[rank](x, weight, call.optional(2), stride, before, extra, group, dilation)
        return result
    whole = _TRANSPOSE[rank](x, weight, call.optional(2), stride, [0] * rank, [0] * rank, group, dilation)
    if any(extra):
        whole = F.pad(whole, [amount for e in reversed(extra) for amount in (0, e)])
        bias = call.optional(2)
        if bias is not None:
            raise call.refuse("output_padding beside unequal pads and a bias")
    for axis, (start, cut) in enumerate(zip(before, behind, strict=True)):
        whole = whole.narrow(axis + 2, start, whole.shape[axis + 2] - start - cut)
    return whole


OPERATORS: dict[str, Operator] = {"Conv": _conv, "ConvTranspose": _conv_transpose}

"""Pooling."""

import math

import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result
from graphprune.passes.importer.operators.conv import padding_of, split_padding

__all__ = ["OPERATORS"]

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _settings(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    kernel = call.attr("kernel_shape")
    rank = len(kernel)
    stride, dilation = call.attr("strides", [1] * rank), call.attr("dilations", [1] * rank)
    before, behind = padding_of(call, list(x.shape[2:]), kernel, stride, dilation)
    if call.attr("ceil_mode", 0):
        behind = [
            b + _rest(n, k, s, d, a, b)
            for n, k, s, d, a, b in zip(x.shape[2:], kernel, stride, dilation, before, behind, strict=True)
        ]
    return kernel, stride, dilation, before, behind


def _rest(size: int, kernel: int, stride: int, dilation: int, before: int, behind: int) -> int:
    """How far the last window reaches beyond the padding, where it begins inside of it (`ceil_mode`)."""
    span = (kernel - 1) * dilation + 1
    windows = math.ceil((size + before + behind - span) / stride) + 1
    if (windows - 1) * stride >= size + before:
        windows -= 1
    return max(0, (windows - 1) * stride + span - size - before - behind)


def _max_pool(call: Call) -> Result:
    x = call.tensor(0)
    if len(call.node.outputs) > 1 and call.node.outputs[1].uses():
        raise call.refuse("the positions of the largest numbers are read")
    kernel, stride, dilation, before, behind = _settings(call, x)
    fits = before == behind and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    if fits:
        return _MAX[len(kernel)](x, kernel, stride, before, dilation)
    padded = F.pad(x, _flat(before, behind), value=float("-inf"))
    return _MAX[len(kernel)](padded, kernel, stride, 0, dilation)


def _flat(before: list[int], behind: list[int]) -> list[int]:
    return [amount for pair in reversed(list(zip(before, behind, strict=True))) for amount in pair]


def _average_pool(call: Call) -> Tensor:
    x = call.tensor(0)
    kernel, stride, dilation, before, behind = _settings(call, x)
    if any(d != 1 for d in dilation):
        raise call.refuse("windows with gaps")
    counts = bool(call.attr("count_include_pad", 0))
    pool = _AVERAGE[len(kernel)]
    if not any(before) and not any(behind):
        return pool(x, kernel, stride)
    stated = padding_of(call, list(x.shape[2:]), kernel, stride, dilation)
    if before == behind and stated == (before, behind) and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, stride, before, False, counts)
    # What is counted: the input, with `count_include_pad` the padding that is stated too, never what ceil_mode adds.
    ones = x.new_ones((1, 1, *x.shape[2:]))
    ones = F.pad(ones, _flat(*stated), value=1.0) if counts else F.pad(ones, _flat(*stated))
    ones = F.pad(ones, _flat([0] * len(kernel), [b - s for b, s in zip(behind, stated[1], strict=True)]))
    return pool(F.pad(x, _flat(before, behind)), kernel, stride) / pool(ones, kernel, stride)


def _global_average(call: Call) -> Tensor:
    x = call.tensor(0)
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _global_max(call: Call) -> Tensor:
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), keepdim=True)


def _lp_pool(call: Call) -> Tensor:
    x, p = call.tensor(0), call.attr("p", 2)
    kernel, stride, _, before, behind = _settings(call, x)
    padded, padding = split_padding(x, before, behind)
    padded = F.pad(padded, _flat(padding, padding)) if any(padding) else padded
    area = math.prod(kernel)
    return (_AVERAGE[len(kernel)](padded.abs().pow(p), kernel, stride) * area).pow(1 / p)


OPERATORS: dict[str, Operator] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "LpPool": _lp_pool,
}

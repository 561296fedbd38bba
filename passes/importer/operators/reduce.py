"""Reductions, softmax, and what picks along an axis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result

__all__ = ["OPERATORS"]


def _reduced(
    function: Callable[[Tensor, list[int], bool], Tensor], on_sizes: Callable[[Any], Any] | None = None
) -> Operator:
    def operator(call: Call) -> Result:
        keep = bool(call.attr("keepdims", 1))
        if call.is_static and on_sizes is not None:
            array = call.static(0)
            found = on_sizes(array.reshape(-1).tolist())
            return np.asarray([found] if keep else found, dtype=object).reshape((1,) * array.ndim if keep else ())
        x = call.tensor(0)
        axes = call.axes(x.dim())
        if not axes:
            if call.attr("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        return function(x, axes, keep)

    return operator


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keep)


def _times(numbers: list[Any]) -> Any:
    total: Any = 1
    for number in numbers:
        total = total * number
    return total


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def operator(call: Call) -> Tensor:
        x = call.tensor(0)
        if call.opset >= 13:
            return function(x, call.attr("axis", -1))
        axis = call.attr("axis", 1) % max(x.dim(), 1)
        if axis == x.dim() - 1:
            return function(x, axis)
        # Below opset 13 all dimensions from the axis on count as one.
        return function(x.flatten(axis), axis).reshape(x.shape)

    return operator


def _arg(function: Callable[..., Tensor]) -> Operator:
    def operator(call: Call) -> Tensor:
        if call.attr("select_last_index", 0):
            raise call.refuse("the last of equal numbers is asked for")
        return function(call.tensor(0), call.attr("axis", 0), bool(call.attr("keepdims", 1)))

    return operator


def _top_k(call: Call) -> Result:
    k = call.number(1) if call.opset >= 10 else call.attr("k")
    return list(torch.topk(call.tensor(0), k, call.attr("axis", -1), bool(call.attr("largest", 1)), True))


def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor(0), int(call.number(1))
    if call.attr("reverse", 0) or call.attr("exclusive", 0):
        raise call.refuse("it runs in reverse, or leaves its own number out")
    return torch.cumsum(x, axis)


OPERATORS: dict[str, Operator] = {
    "ReduceMean": _reduced(_mean),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keep), sum),
    "ReduceMax": _reduced(lambda x, axes, keep: torch.amax(x, axes, keep), max),
    "ReduceMin": _reduced(lambda x, axes, keep: torch.amin(x, axes, keep), min),
    "ReduceProd": _reduced(_product, _times),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.sqrt(x.square().sum(axes, keep))),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keep).log()),
    "Softmax": _softmax(lambda x, axis: torch.softmax(x, axis)),
    "LogSoftmax": _softmax(lambda x, axis: torch.log_softmax(x, axis)),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "TopK": _top_k,
    "CumSum": _cumsum,
}

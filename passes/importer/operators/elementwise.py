"""Operators that look at one position at a time, with NumPy's broadcasting; on sizes they compute with numbers."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.passes.importer.call import Call, Operator, Result, as_tensor, torch_type

__all__ = ["OPERATORS"]

_SYM: Any = torch  # its functions on symbols have no types


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor(0))


def _on_sizes(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The function on every position of broadcast arrays of numbers or symbols."""
    parts = np.broadcast_arrays(*(array.astype(object) for array in arrays))
    out = np.empty(parts[0].shape, dtype=object)
    for at in np.ndindex(out.shape):
        out[at] = function(*(part[at] for part in parts))
    return out


def _binary(on_tensors: Callable[[Tensor, Tensor], Tensor], on_sizes: Callable[[Any, Any], Any]) -> Operator:
    def operator(call: Call) -> Result:
        if call.is_static:
            return _on_sizes(on_sizes, *(call.static(at) for at in range(2)))
        floats = [v for v in call.inputs if isinstance(v, Tensor)]
        return on_tensors(call.tensor(0, floats[0]), call.tensor(1, floats[0]))

    return operator


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _divide_sizes(a: Any, b: Any) -> Any:
    whole = not isinstance(a, float | torch.SymFloat) and not isinstance(b, float | torch.SymFloat)
    return a // b if whole else a / b  # sizes are not negative, so floor is what ONNX means


def _modulo(call: Call) -> Result:
    if call.is_static:
        return _on_sizes(lambda a, b: a % b, call.static(0), call.static(1))
    return (torch.fmod if call.attr("fmod", 0) else torch.remainder)(call.tensor(0), call.tensor(1))


def _variadic(on_tensors: Callable[[Tensor, Tensor], Tensor], on_sizes: Callable[[Any, Any], Any]) -> Operator:
    def operator(call: Call) -> Result:
        if call.is_static:
            return reduce(lambda a, b: _on_sizes(on_sizes, a, b), [call.static(at) for at in range(len(call.inputs))])
        floats = [v for v in call.inputs if isinstance(v, Tensor)]
        return reduce(on_tensors, [call.tensor(at, floats[0]) for at in range(len(call.inputs))])

    return operator


def _mean(call: Call) -> Tensor:
    return reduce(torch.add, [call.tensor(at) for at in range(len(call.inputs))]) / len(call.inputs)


def _clip(call: Call) -> Result:
    low, high = (call.attr("min"), call.attr("max")) if call.opset < 11 else (_limit(call, 1), _limit(call, 2))
    if call.is_static and call.has(0):
        least: Callable[[Any], Any] = (lambda n: n) if low is None else (lambda n: _SYM.sym_max(n, low))
        return _on_sizes(least if high is None else (lambda n: _SYM.sym_min(least(n), high)), call.static(0))
    x = call.tensor(0)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, as_tensor(low) if isinstance(low, Tensor) else x.new_tensor(low))
        return x if high is None else torch.minimum(x, high if isinstance(high, Tensor) else x.new_tensor(high))
    if low is not None and high is not None and low == 0 and high == 6:
        return F.relu6(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _limit(call: Call, at: int) -> Any:
    if not call.has(at):
        return None
    source = call.node.inputs[at]
    is_known = isinstance(call.inputs[at], np.ndarray) or (source is not None and source.const_value is not None)
    return call.number(at) if is_known else call.tensor(at)


def _cast(call: Call) -> Result:
    wanted = torch_type(call.attr("to"))
    value = call.inputs[0]
    if isinstance(value, np.ndarray):
        if wanted == torch.bool:
            return _on_sizes(bool, value)
        if wanted.is_floating_point:
            return _on_sizes(lambda n: _SYM.sym_float(n) if isinstance(n, torch.SymInt) else float(n), value)
        return _on_sizes(
            lambda n: (
                math.trunc(n)
                if isinstance(n, float)
                else _SYM.sym_int(n)
                if isinstance(n, torch.SymFloat)
                else n
                if isinstance(n, torch.SymInt)
                else int(n)
            ),
            value,
        )
    return call.tensor(0).to(wanted)


def _cast_like(call: Call) -> Result:
    return call.tensor(0).to(call.tensor(1).dtype)


def _where(call: Call) -> Result:
    if call.is_static:
        return _on_sizes(lambda c, a, b: a if c else b, *(call.static(at) for at in range(3)))
    floats = [v for v in call.inputs[1:] if isinstance(v, Tensor)]
    like = floats[0] if floats else None
    return torch.where(call.tensor(0).bool(), call.tensor(1, like), call.tensor(2, like))


def _prelu(call: Call) -> Tensor:
    x, slope = call.tensor(0), call.tensor(1)
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.attr("alpha", 0.2), call.attr("beta", 0.5)
    x = call.tensor(0)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.attr("approximate", "none"))


def _round(x: Tensor) -> Tensor:
    return torch.round(x)


def _thresholded(call: Call) -> Tensor:
    x = call.tensor(0)
    return torch.where(x > call.attr("alpha", 1.0), x, torch.zeros_like(x))


def _shrink(call: Call) -> Tensor:
    x, bias, lambd = call.tensor(0), call.attr("bias", 0.0), call.attr("lambd", 0.5)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def _dropout(call: Call) -> Result:
    """What inference makes of it: nothing. What is learned from is the network as it answers."""
    x = call.tensor(0)
    return [x, torch.ones_like(x, dtype=torch.bool)][: max(1, len(call.node.outputs))]


def _bias_gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0) + call.tensor(1))


def _quick_gelu(call: Call) -> Tensor:
    x = call.tensor(0)
    return x * torch.sigmoid(x * call.attr("alpha", 1.702))


def _identity(call: Call) -> Result:
    return call.inputs[0]


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": _round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _either(on_tensors: Callable[[Tensor], Tensor], on_sizes: Callable[[Any], Any]) -> Operator:
    def operator(call: Call) -> Result:
        if call.is_static:
            return _on_sizes(on_sizes, call.static(0))
        return on_tensors(call.tensor(0))

    return operator


def _sym(function: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda n: n if isinstance(n, int | torch.SymInt) else float(function(n))


OPERATORS: dict[str, Operator] = {
    **{kind: _unary(function) for kind, function in _UNARY.items()},
    "Neg": _either(torch.neg, lambda n: -n),
    "Ceil": _either(torch.ceil, _sym(math.ceil)),
    "Floor": _either(torch.floor, _sym(math.floor)),
    "Sqrt": _either(
        torch.sqrt, lambda n: _SYM._sym_sqrt(n) if isinstance(n, torch.SymInt | torch.SymFloat) else math.sqrt(n)
    ),
    "Add": _binary(torch.add, lambda a, b: a + b),
    "Sub": _binary(torch.sub, lambda a, b: a - b),
    "Mul": _binary(torch.mul, lambda a, b: a * b),
    "Div": _binary(_divide, _divide_sizes),
    "Pow": _binary(torch.pow, lambda a, b: a**b),
    "Mod": _modulo,
    "And": _binary(torch.logical_and, lambda a, b: bool(a) and bool(b)),
    "Or": _binary(torch.logical_or, lambda a, b: bool(a) or bool(b)),
    "Xor": _binary(torch.logical_xor, lambda a, b: bool(a) != bool(b)),
    "Equal": _binary(torch.eq, lambda a, b: bool(a == b)),
    "Greater": _binary(torch.gt, lambda a, b: bool(a > b)),
    "GreaterOrEqual": _binary(torch.ge, lambda a, b: bool(a >= b)),
    "Less": _binary(torch.lt, lambda a, b: bool(a < b)),
    "LessOrEqual": _binary(torch.le, lambda a, b: bool(a <= b)),
    "Max": _variadic(torch.maximum, lambda a, b: _SYM.sym_max(a, b)),
    "Min": _variadic(torch.minimum, lambda a, b: _SYM.sym_min(a, b)),
    "Sum": _variadic(torch.add, lambda a, b: a + b),
    "Mean": _mean,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "PRelu": _prelu,
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.attr("alpha", 0.01)),
    "Elu": lambda call: F.elu(call.tensor(0), call.attr("alpha", 1.0)),
    "Celu": lambda call: F.celu(call.tensor(0), call.attr("alpha", 1.0)),
    "Selu": lambda call: (
        call.attr("gamma", 1.05070102214813232421875)
        * F.elu(call.tensor(0), call.attr("alpha", 1.67326319217681884765625))
    ),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "com.microsoft::BiasGelu": _bias_gelu,
    "com.microsoft::Gelu": _gelu,
    "com.microsoft::QuickGelu": _quick_gelu,
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Dropout": _dropout,
    "Identity": _identity,
    "IsInf": lambda call: torch.isinf(call.tensor(0)),
}

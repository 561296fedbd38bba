"""Element-wise operators: channels that meet at a position can only go together.

What differs between them is one fact: is the result zero where the operands are? It decides whether a
removed channel still adds something further down (sigmoid(0) = 0.5) or not (relu(0) = 0). Where a zero
gives no number at all (log(0), 0/0), no later zero can silence it (0 * inf is not 0): inexact.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from graphprune.passes.channels.analysis import Analysis, Binding, Op, Rule
from graphprune.passes.channels.coupling import Combine, all_zero, any_zero, broadcast, first_zero, never_zero
from graphprune.passes.channels.operators import Couple
from graphprune.passes.channels.value import Value

#: Chooses the statement on zeros from the operator's scalar arguments.
Choose = Callable[[Op], Combine]


def elementwise(choose: Choose) -> Couple:
    """The coupling of operators on all their inputs, position by position; `choose` says where the result is zero."""

    def couple(analysis: Analysis, op: Op) -> list[Value]:
        result = broadcast(analysis, op, op.values(), choose(op))
        masks = [shape == op.shape for shape in op.out_shapes[1:]]  # of a dropout
        return [result, *(replace(result, facets=tuple(f.with_zero(False) for f in result.facets)) for m in masks if m)]

    return couple


def _rule(name: str, choose: Choose, aten: tuple[str, ...], onnx: tuple[str, ...] = (), inputs: Any = None) -> Rule:
    binding = Binding(inputs=inputs or ("input", "other", "third"))
    return Rule(name, elementwise(choose), aten={key: Binding() for key in aten}, onnx=dict.fromkeys(onnx, binding))


def _identity(analysis: Analysis, op: Op) -> list[Value]:
    """The same elements, numbers included: an index that is copied is still known."""
    x = op.value("input")
    return [Value(x.shape, x.facets, x.constant, x.data)]


def _cast(analysis: Analysis, op: Op) -> list[Value]:
    """The same elements in the precision of another tensor, of which nothing else matters."""
    other = op.optional("other")
    for facet in () if other is None else other.facets:
        analysis.drop(facet.labels)
    return [broadcast(analysis, op, [op.value("input")], first_zero)]


def _singular(analysis: Analysis, op: Op) -> list[Value]:
    """Functions that have no value at zero."""
    x = op.value("input")
    _no_zeros(analysis, op, x)
    return [broadcast(analysis, op, [x], never_zero)]


def _quotient(analysis: Analysis, op: Op) -> list[Value]:
    divisor = op.optional("other")
    if divisor is not None:
        _no_zeros(analysis, op, divisor)
    return [broadcast(analysis, op, op.values(), first_zero)]


def _no_zeros(analysis: Analysis, op: Op, value: Value) -> None:
    for facet in value.facets:
        if facet.zero.any():
            analysis.inexact(facet.labels[facet.zero], op, "has no value at zero")


def _scalar(op: Op, name: str, default: float = 0.0) -> float:
    value = op.attrs.get(name, default)
    return float(value) if isinstance(value, int | float) else float("nan")


def _add(op: Op) -> Combine:
    """A scalar added makes zeros non-zero."""
    return all_zero if op.optional("other") is not None or _scalar(op, "other") == 0 else never_zero


def _numbers(op: Op, name: str) -> Any:
    """An argument that is a number or a tensor: its numbers, NaN where they are not known, None where it is absent."""
    value = op.optional(name)
    if value is None:
        return op.attrs.get(name)
    return np.nan if value.data is None else value.data


def _clamp(op: Op) -> Combine:
    low, high = _numbers(op, "min"), _numbers(op, "max")
    keeps = (low is None or np.all(low <= 0)) and (high is None or np.all(high >= 0))
    return first_zero if keeps else never_zero


def _extremum(keeps: Callable[[Any], Any]) -> Choose:
    """The larger or smaller of the operands is zero where all of them are, and where no other number is beyond zero.

    Args:
        keeps: which numbers do not win against zero.
    """

    def choose(op: Op) -> Combine:
        harmless = [v.data is not None and bool(np.all(keeps(v.data))) for v in op.values()]
        return lambda zeros: all_zero([z if z is not None else h or None for z, h in zip(zeros, harmless, strict=True)])

    return choose


def _power(analysis: Analysis, op: Op) -> list[Value]:
    exponent = _scalar(op, "exponent", float("nan"))
    if exponent < 0:
        return _singular(analysis, op)
    return [broadcast(analysis, op, op.values(), first_zero if exponent > 0 else never_zero)]


def _where(op: Op) -> Combine:
    """Both branches must be zero; the condition's zeros do not count."""
    if op.optional("self") is None and op.attrs.get("self", 0) != 0:
        return never_zero
    if op.optional("other") is None and op.attrs.get("other", 0) != 0:
        return never_zero
    return lambda zeros: all_zero(zeros[1:])


def _masked_fill(op: Op) -> Combine:
    value = _numbers(op, "value")
    return first_zero if value is not None and np.all(value == 0) else never_zero


def _hardtanh(op: Op) -> Combine:
    return first_zero if _scalar(op, "min_val", -1) <= 0 <= _scalar(op, "max_val", 1) else never_zero


def _threshold(op: Op) -> Combine:
    return first_zero if _scalar(op, "threshold") < 0 or _scalar(op, "value") == 0 else never_zero


_KEEPS_ZERO = (
    "abs asin asinh atan atanh ceil celu dropout elu erf expand_as expm1 feature_dropout floor frac gelu "
    "hardshrink hardswish leaky_relu log1p mish neg positive relu relu6 round rrelu selu sgn sign silu sin sinh "
    "softshrink sqrt square tan tanh trunc _to_copy nan_to_num alpha_dropout feature_alpha_dropout real zero"
).split()
_LOSES_ZERO = (
    "acos bitwise_not cos cosh erfc exp exp2 hardsigmoid isfinite isinf isnan log_sigmoid logical_not sigmoid "
    "softplus ones_like full_like empty_like rand_like randn_like eq ne lt le gt ge logical_or "
    "logical_xor bitwise_or bitwise_xor atan2 xlogy fill"
).split()
_SINGULAR = ["acosh", "digamma", "lgamma", "log", "log10", "log2", "logit", "reciprocal", "rsqrt"]
_ONNX_KEEPS_ZERO = (
    "Abs Asin Asinh Atan Atanh BitCast BitShift Cast Ceil Celu Dropout Elu Erf Floor Gelu HardSwish LeakyRelu Mish Neg "
    "Relu Round Selu Shrink Sign Sin Sinh Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
_ONNX_LOSES_ZERO = (
    "Acos And Bernoulli BitwiseNot BitwiseOr BitwiseXor Cos Cosh Equal Exp Greater GreaterOrEqual HardSigmoid IsInf "
    "IsNaN Less LessOrEqual Not Or RandomNormalLike RandomUniformLike Sigmoid Softplus Xor"
).split()


def _onnx_power(analysis: Analysis, op: Op) -> list[Value]:
    exponent = op.value("other").data
    if exponent is not None and (exponent < 0).any():
        _no_zeros(analysis, op, op.value("input"))
    keeps = exponent is not None and (exponent > 0).all()
    return [broadcast(analysis, op, op.values(), first_zero if keeps else never_zero)]


def _copied(op: Op) -> Combine:
    """What stands in the first operand is overwritten."""
    return lambda zeros: zeros[1] if len(zeros) > 1 and zeros[1] is not None else False


def _bind(*names: str, inputs: tuple[str, ...] = ()) -> dict[str, Binding]:
    return dict.fromkeys(names, Binding(inputs=inputs))


_FAMILY = (
    Rule(
        "identity",
        _identity,
        aten=_bind("alias", "clone", "contiguous", "detach", "lift_fresh_copy"),
        onnx=_bind("Identity", inputs=("input",)),
        moves=True,
    ),
    Rule(
        "cast",
        _cast,
        aten=_bind("to", "type_as"),
        onnx=_bind("CastLike", inputs=("input", "other")),
        measures=("other",),
    ),
    _rule("copy", _copied, ("copy",)),
    _rule("zeros of the same size", lambda op: lambda zeros: True, ("zeros_like",)),
    _rule("activation, zero at zero", lambda op: first_zero, tuple(_KEEPS_ZERO), tuple(_ONNX_KEEPS_ZERO)),
    _rule(
        "activation or comparison, not zero at zero", lambda op: never_zero, tuple(_LOSES_ZERO), (*_ONNX_LOSES_ZERO,)
    ),
    Rule(
        "function without a value at zero",
        _singular,
        aten=_bind(*_SINGULAR),
        onnx=_bind("Acosh", "Log", "Reciprocal", inputs=("input",)),
    ),
    _rule("addition", _add, ("add", "sub", "rsub"), ("Add", "Sub", "Sum", "Mean"), ("input...",)),
    _rule("maximum", _extremum(lambda n: n <= 0), ("maximum", "max.other", "fmax"), ("Max",), ("input...",)),
    _rule("minimum", _extremum(lambda n: n >= 0), ("minimum", "min.other", "fmin"), ("Min",), ("input...",)),
    _rule("product", lambda op: any_zero, ("mul", "logical_and", "bitwise_and"), ("Mul", "BitwiseAnd")),
    _rule("relu with a slope of any shape", lambda op: first_zero, (), ("PRelu",)),
    Rule(
        "quotient",
        _quotient,
        aten=_bind("div", "true_divide", "floor_divide", "fmod", "remainder"),
        onnx=_bind("Div", "Mod", inputs=("input", "other")),
    ),
    _rule("clamp", _clamp, ("clamp", "clamp_min", "clamp_max", "clip"), ("Clip",), ("input", "min", "max")),
    _rule("hardtanh", _hardtanh, ("hardtanh",)),
    _rule("threshold", _threshold, ("threshold",)),
    Rule("power", _power, aten=_bind("pow")),
    Rule("power of a tensor", _onnx_power, onnx=_bind("Pow", inputs=("input", "other"))),
    _rule("choice", _where, ("where",), ("Where",), ("condition", "self", "other")),
    _rule("masked fill", _masked_fill, ("masked_fill",)),
    _rule("sum of products", lambda op: never_zero, ("addcmul", "addcdiv", "lerp")),
)

#: All of them treat every position alone.
RULES = tuple(replace(rule, pointwise=True) for rule in _FAMILY)

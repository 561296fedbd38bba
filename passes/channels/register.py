"""Rules for operators of one's own: of a torch library, or of an ONNX domain."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from graphprune.passes.channels.analysis import Analysis, Op
from graphprune.passes.channels.operators import Binding, Couple, Resize, Rule, Shapes
from graphprune.passes.channels.patterns import Pattern
from graphprune.passes.channels.rules import TABLE
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import GraphPruneError, RuleError

__all__ = ["Registration", "register_rule"]

#: Operators by name, or each with how it spells the arguments.
Operators = str | Iterable[str] | Mapping[str, Binding]


class Registration:
    """A rule that was registered, until `remove` is called or the `with` block ends.

    Attributes:
        rule: the rule as it stands in the table.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def remove(self) -> None:
        """Take the rule out of the table: its operators have none again."""
        TABLE.remove(self.rule)

    def __enter__(self) -> "Registration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<rule '{self.rule.name}' for {', '.join((*self.rule.aten, *self.rule.onnx))}>"


def register_rule(
    name: str,
    coupling: Pattern | Couple,
    *,
    torch: Operators = (),
    onnx: Operators = (),
    inputs: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    resize: Resize | None = None,
    shapes: Shapes | None = None,
    to_onnx: Callable[..., Any] | None = None,
    kernels: str | os.PathLike[str] | None = None,
) -> Registration:
    """Say how the channels of an operator are coupled, so that it is unknown no longer.

    From then on every part that looks at channels knows the operator: `trace`, `plan`, `mask`, `slim`, `slim_onnx`,
    `compress` and the command line, which is told of a module with rules by `--rules package.module`, or finds it as
    an entry point of the group `graphprune.rules` of an installed package. `graphprune.testing.check_rule` tells
    whether a rule is right.

    Example:
        An activation with a slope for each channel, which gives 0 for 0, in a torch library and in an ONNX domain:

        >>> from graphprune.passes.channels import patterns
        >>> register_rule(
        ...     "slope",
        ...     patterns.per_channel("weight", zero=patterns.first_zero),
        ...     torch="mylib::slope",
        ...     onnx="com.example::Slope",
        ... )
        <rule 'slope' for mylib::slope, com.example.Slope>

    Args:
        name: of the rule, for messages.
        coupling: one of `graphprune.passes.channels.patterns` (element-wise, one parameter a channel, mixing as a
            convolution does, ...), or a function of one's own (`Analysis`, `Op`) -> a `Value` for each result, which
            also states costs (`Analysis.cost`).
        torch: operators of a torch library, `mylib::op` or `mylib.op`, for one overload `mylib::op.overload`.
        onnx: ONNX operators or functions, `com.example::Op` or `com.example.Op`; with no domain, of the standard one.
            A function that has a rule is left as it is, others are replaced by what they are made of.
        inputs: names that the coupling knows the inputs by, in the operator's order; by default those of the pattern.
        names: names of arguments as the coupling knows them -> as the operator spells them, where they differ. Where
            torch and ONNX spell them differently, give `torch` or `onnx` a `Binding` for each operator instead.
        fixed: arguments of the coupling that the operator does not have, or may leave out.
        resize: how arguments that repeat sizes follow a cut: (`Op`, `Cut`) -> the arguments that are new.
        shapes: sizes of the results, for ONNX files that do not say them: `Op` -> a shape for each; by default those of
            the pattern.
        to_onnx: how `export_onnx` writes the torch operator: a function of its arguments as `torch.onnx.export` takes
            it in `custom_translation_table`.
        kernels: the shared library in which onnxruntime finds the ONNX operator. It is code, and is loaded.

    Returns:
        The registration, which can be removed, or used in a `with` statement.

    Raises:
        RuleError: an operator has a rule already, a name has the wrong form, or there is none.
    """
    pattern = coupling if isinstance(coupling, Pattern) else Pattern(coupling, ())
    common = Binding(
        names=dict(names or {}),
        inputs=pattern.inputs if inputs is None else tuple(inputs),
        fixed={**pattern.fixed, **(fixed or {})},
    )
    library = None if kernels is None else os.path.abspath(kernels)
    of_torch = {_torch_key(k): replace(b, to_onnx=b.to_onnx or to_onnx) for k, b in _bound(torch, common).items()}
    of_onnx = {_onnx_key(k): replace(b, kernels=b.kernels or library) for k, b in _bound(onnx, common).items()}
    if not of_torch and not of_onnx:
        raise RuleError(f"the rule '{name}' is for no operator: name one with torch= or onnx=")
    for key in of_torch:
        held = TABLE.aten.get(key.rpartition(".")[0])
        if held is not None:
            raise RuleError(f"the rule '{name}' is for {key}, of which all forms have the rule '{held[0].name}'")
    resize, shapes = resize or pattern.resize, shapes or pattern.shapes
    rule = Rule(
        name,
        _checked(name, pattern.couple),
        None if resize is None else _guarded(name, resize),
        of_torch,
        of_onnx,
        sums=pattern.sums,
        pointwise=pattern.pointwise,
        moves=pattern.moves,
        shapes=None if shapes is None else _guarded(name, shapes),
    )
    TABLE.add(rule)
    return Registration(rule)


def _bound(operators: Operators, common: Binding) -> dict[str, Binding]:
    """Each operator with its binding; what it does not say itself is as for all."""
    if isinstance(operators, str):
        return {operators: common}
    if not isinstance(operators, Mapping):
        return dict.fromkeys(operators, common)
    return {
        key: replace(
            own,
            inputs=own.inputs or common.inputs,
            names={**common.names, **own.names},
            fixed={**common.fixed, **own.fixed},
        )
        for key, own in operators.items()
    }


def _torch_key(name: str) -> str:
    """`mylib::op` or `mylib.op`, with an overload or without, as the table has it."""
    library, _, rest = name.partition("::") if "::" in name else name.partition(".")
    parts = [library, *rest.split(".")]
    if len(parts) > 3 or not all(part.isidentifier() for part in parts):
        raise RuleError(f"'{name}' is no operator of a torch library: write mylib::op, or mylib::op.overload")
    return rest if library == "aten" else f"{library}::{rest}"


def _onnx_key(name: str) -> str:
    """`com.example::Op` or `com.example.Op`, as the table has it."""
    domain, _, kind = name.rpartition("::") if "::" in name else name.rpartition(".")
    if not kind.isidentifier() or (domain and not all(domain.split("."))):
        raise RuleError(f"'{name}' is no ONNX operator: write com.example::Op, or Op for one of the standard")
    return kind if domain in ("", "ai.onnx") else f"{domain}.{kind}"


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors are said in one line."""

    def call(*arguments: Any) -> Any:
        op = next(item for item in arguments if isinstance(item, Op))
        try:
            return function(*arguments)
        except GraphPruneError:
            raise
        except Exception as error:  # somebody else's code: it may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RuleError(f"the rule '{name}' fails at {op.kind} ({op.where}): {reason}") from error

    return call


def _checked(name: str, couple: Couple) -> Couple:
    """The coupling, whose results must have the operator's shapes."""
    guarded = _guarded(name, couple)

    def call(analysis: Analysis, op: Op) -> list[Value]:
        results = guarded(analysis, op)
        where = f"the rule '{name}' at {op.kind} ({op.where})"
        if not isinstance(results, list) or not all(isinstance(value, Value) for value in results):
            raise RuleError(f"{where} gives no list of values")
        for value, shape in zip(results, op.out_shapes, strict=False):
            if value.shape != shape:
                raise RuleError(f"{where} gives a result of shape {value.shape}, and the operator one of {shape}")
            for facet in value.facets:
                sizes = facet.labels.shape
                if len(sizes) != len(shape) or any(n not in (1, size) for n, size in zip(sizes, shape, strict=True)):
                    raise RuleError(f"{where} lays channels out as {sizes} in a result of shape {shape}")
        return results

    return call

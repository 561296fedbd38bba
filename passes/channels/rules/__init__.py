"""The one table of operator rules, shared by the torch.fx and the ONNX front end.

Collected from an explicit tuple, so that reading this file tells what is covered.
"""

from collections.abc import Mapping

from graphprune.passes.channels.analysis import Binding, Rule
from graphprune.passes.channels.rules import (
    attention,
    conv,
    einsum,
    elementwise,
    fused,
    indexing,
    integers,
    linear,
    lookup,
    norm,
    pad,
    quantize,
    recurrent,
    reduce,
    reshape,
    select,
)

FAMILIES = (
    *(conv, linear, einsum, attention, recurrent, norm, elementwise, reduce, reshape, select, pad, indexing, lookup),
    *(quantize, fused, integers),
)

RULES: tuple[Rule, ...] = tuple(rule for family in FAMILIES for rule in family.RULES)


def _table(vocabulary: str) -> dict[str, tuple[Rule, Binding]]:
    table: dict[str, tuple[Rule, Binding]] = {}
    for rule in RULES:
        bindings: Mapping[str, Binding] = getattr(rule, vocabulary)
        for kind, binding in bindings.items():
            if kind in table:
                raise ValueError(f"two rules for {kind}: {table[kind][0].name} and {rule.name}")
            table[kind] = (rule, binding)
    return table


#: ATen operator (`conv2d`, or `max.other` for one overload) -> rule and how it spells the arguments.
ATEN = _table("aten")

#: ONNX operator type -> rule and how it spells the arguments.
ONNX = _table("onnx")

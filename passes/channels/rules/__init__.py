"""The one table of operator rules, shared by the torch.fx and the ONNX front end.

Collected from an explicit tuple, so that reading this file tells what is covered.
"""

from graphprune.passes.channels.analysis import Rule
from graphprune.passes.channels.registry import GROUP, RuleTable
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


#: Our own rules, and those that were registered.
TABLE = RuleTable(RULES, GROUP)

#: ATen operator (`conv2d`, or `max.other` for one overload) -> rule and how it spells the arguments.
ATEN = TABLE.aten

#: ONNX operator type -> rule and how it spells the arguments.
ONNX = TABLE.onnx

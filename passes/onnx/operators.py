"""Operators of ONNX graphs in the words of their rules, and which have one as a table for the documentation.

python -m graphprune.passes.onnx.operators > docs/onnx_operators.md
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphprune.passes.channels.analysis import Binding, Op
from graphprune.passes.channels.rules import RULES
from graphprune.passes.channels.value import Value
from graphprune.passes.onnx.model import attributes
from graphprune.passes.onnx.sizes import operator_name

_UNKNOWN = Binding(inputs=("input...",))


def bind(
    node: ir.Node,
    values: Sequence[Value | None],
    binding: Binding | None,
    shapes: tuple[tuple[int, ...], ...],
    opsets: Mapping[str, int],
    kind: str = "",
) -> Op:
    """A node in the words of its rule.

    Args:
        node: the node.
        values: what is known of its inputs.
        binding: how its rule spells them; None where it has none.
        shapes: sizes of its results.
        opsets: version of each domain.
        kind: what messages call the operator.

    Raises:
        ValueError: the node has more inputs than the rule has names for.
    """
    binding = binding or _UNKNOWN
    names = binding.inputs or _UNKNOWN.inputs
    inputs: dict[str, Any] = {}
    for position, value in enumerate(values):
        name = names[min(position, len(names) - 1)]
        if name.endswith("..."):
            inputs.setdefault(name.removesuffix("..."), []).append(value)
        elif position < len(names):
            inputs[name] = value
        elif value is not None:
            raise ValueError(f"{node.op_type} has {len(values)} inputs, and its rule knows {len(names)}")
    inputs = {k: [v for v in x if v is not None] if isinstance(x, list) else x for k, x in inputs.items()}
    ours = {theirs: own for own, theirs in binding.names.items()}
    given = {ours.get(name, name): value for name, value in attributes(node).items()}
    attrs = {**binding.fixed, "opset": opsets.get("", 1), **given}
    if binding.read is not None:
        attrs = binding.read(attrs, {k: v for k, v in inputs.items() if v is not None})
    kind = kind or operator_name(node)
    return Op(kind, node.name or "", node.name or kind, inputs, attrs, shapes)


def table() -> str:
    """A Markdown page: the rule of every operator, in the order of the rule table."""
    lines = [
        "# ONNX operators with a rule",
        "",
        "Generated from the rule table by `python -m graphprune.passes.onnx.operators`; a test holds the two together.",
        "An operator that is not listed is named in the report, and channels that reach it stay. Constants and sizes",
        "that a graph computes are evaluated and need no rule.",
        "",
        "| rule | operators |",
        "|---|---|",
    ]
    lines += [f"| {rule.name} | {', '.join(sorted(rule.onnx))} |" for rule in RULES if rule.onnx]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())

"""Which ONNX operators have a rule, as a table for the documentation.

python -m graphprune.passes.onnx.operators > docs/onnx_operators.md
"""

import sys

from graphprune.passes.channels.rules import RULES


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

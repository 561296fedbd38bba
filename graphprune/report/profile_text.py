"""A profile as text: time by operator, the most expensive layers, and what is not as fast as it could be."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from graphprune.report.profile import ProfileReport
from graphprune.report.tables import milliseconds, new_table, rendered
from graphprune.runtime.optimized_nodes import BLOCKS, INTEGERS, Finding

__all__ = ["render_profile"]

_TOP = 10


def render_profile(report: ProfileReport, console: Console | None = None) -> str:
    """Return a profile as text; with a console, print it there as well."""
    operators = new_table([report.name, "layout", "kernels", "time", "share"], left=(0, 1))
    for op, layout, number, ms, share in report.by_operator():
        operators.add_row(op, layout, str(number), milliseconds(ms), f"{share:.1%}")
    layers = new_table(["the most expensive kernels", "operator", "layout", "time", "share"], left=(0, 1, 2))
    for kernel in sorted(report.kernels, key=lambda kernel: -kernel.ms)[:_TOP]:
        layers.add_row(kernel.layer, kernel.op_type, kernel.layout, milliseconds(kernel.ms), f"{kernel.share:.1%}")
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    condition = (
        f"{report.name}: kernels of a batch of {report.batch}, {threads}, {milliseconds(report.total_ms)} in all"
    )
    return "\n".join([rendered(operators, [], console), rendered(layers, [condition, *_findings(report)], console)])


def _findings(report: ProfileReport) -> list[str]:
    times = {kernel.name: kernel.ms for kernel in report.kernels}
    block = report.machine.conv_block
    blocks, integers = ([f for f in report.findings if f.about == about] for about in (BLOCKS, INTEGERS))
    lines = []
    if blocks:
        lines += [
            f"outside the layout of {block}-channel blocks: {_share(blocks, times, report)}",
            *_grouped(blocks, times),
        ]
    elif block == 1:
        lines.append("onnxruntime has no blocked layout on this processor")
    elif not integers:
        lines.append(f"nothing fell out of the layout of {block}-channel blocks")
    if integers:
        lines.append(f"layers not computed in integers, or slowly: {_share(integers, times, report)}")
        lines += _grouped(integers, times)
    return lines


def _share(findings: Sequence[Finding], times: dict[str, float], report: ProfileReport) -> str:
    lost = sum(times.get(finding.node, 0.0) for finding in findings)
    return f"{len(findings)} kernels, {milliseconds(lost)}, {lost / report.total_ms:.1%} of the time"


def _grouped(findings: Sequence[Finding], times: dict[str, float]) -> list[str]:
    """One line for all kernels of one operator with one reason."""

    def key(finding: Finding) -> tuple[str, str]:
        return finding.op_type, finding.reason

    lines = []
    for (op_type, reason), group in groupby(sorted(findings, key=key), key):
        found = list(group)
        names = list(dict.fromkeys(finding.layer for finding in found))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        spent = milliseconds(sum(times.get(finding.node, 0.0) for finding in found))
        lines.append(f"  {op_type} of {', '.join(names[:3])}{more} ({spent}): {reason}")
    return lines

"""What an agent sees of a set of coupled channels: the layers that produce them, and what they cost.

Source: He et al. 2018, "AMC: AutoML for model compression", section 3.1 (t, n, c, h, w, stride, k, FLOPs, reduced,
rest, previous action). A set may have several layers, as a residual trunk does: sizes are means over them, and shares
of cost are those of what goes with all of the set's channels.
"""

from typing import TYPE_CHECKING

import numpy as np

from graphprune.allocation.problem import Problem
from graphprune.passes.channels.value import Value

if TYPE_CHECKING:
    from graphprune.passes.channels.branches import Step
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["NAMES", "describe"]

NAMES = ("index", "layers", "grouped", "linear", "inputs", "outputs", "kernel", "stride", "positions", "cost")
"""The columns, before those of the course of an episode."""


def describe(problem: Problem) -> np.ndarray:
    """(n_sets, len(NAMES)) descriptors, each column scaled to 0..1."""
    graph = problem.graph
    layers = _layers_of_sets(graph)
    every = problem.count(graph.all_kept())
    rows = []
    for group_set in graph.sets:
        without = graph.all_kept()
        without[group_set.groups] = False
        left = problem.count(without)
        cost = float(np.mean([1 - left[unit] / every[unit] for unit in every])) if every else 0.0
        own = layers[group_set.index]
        sizes = np.array([_sizes(step) for step in own]).mean(axis=0) if own else np.zeros(6)
        grouped, linear, inputs, kernel, stride, positions = sizes
        width = float(len(group_set.groups))
        rows.append([group_set.index, len(own), grouped, linear, inputs, width, kernel, stride, positions, cost])
    table = np.array(rows, dtype=np.float64).reshape(len(graph.sets), len(NAMES))
    return table / np.maximum(table.max(axis=0, initial=0.0), 1e-12)


def _layers_of_sets(graph: "ChannelGraph") -> list[list["Step"]]:
    """For every set the operators with weights whose output channels it has."""
    set_of_parameter: dict[str, set[int]] = {}
    for group_set in graph.sets:
        for name, _, _ in group_set.outputs:
            set_of_parameter.setdefault(name, set()).add(group_set.index)
    found: list[list[Step]] = [[] for _ in graph.sets]
    for step in graph.flow.steps:
        weight = step.op.inputs.get("weight", step.op.inputs.get("other"))
        if step.rule is None or step.rule.sums is None or not isinstance(weight, Value) or weight.parameter is None:
            continue
        for index in set_of_parameter.get(weight.parameter, ()):
            found[index].append(step)
    return found


def _sizes(step: "Step") -> tuple[float, ...]:
    """Grouped or not, linear or not, inputs, side of the kernel, side of the input map over that of the output, map."""
    weight, source = step.op.inputs.get("weight", step.op.inputs.get("other")), step.op.inputs.get("input")
    assert step.rule is not None
    assert step.rule.sums is not None
    assert isinstance(weight, Value)
    result = step.results[0].shape
    outputs, kernel = result[step.rule.sums(step.op)], weight.shape[2:]
    # A transposed convolution has its dimensions the other way round, so the inputs are what is left of all elements.
    inputs = np.prod(weight.shape) / (outputs * np.prod(kernel))
    return (
        float(step.op.attrs.get("groups", 1) > 1),
        float(not kernel),
        float(inputs),
        float(kernel[-1]) if kernel else 1.0,
        source.shape[-1] / result[-1] if kernel and isinstance(source, Value) else 1.0,
        float(np.prod(result[1:]) / outputs),
    )

"""Which end of a network stays in float32, because eight bits cannot hold what it joins.

A tensor of activations has one scale. Where boxes of 640 pixels and scores between 0 and 1 are concatenated, a step is
2.5 of either, and no score is left. Behind the last layer there is next to nothing to gain from integers: what leads
from there to such an output is left as it is, and the parts are quantized on their own where they leave their layers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.passes.onnx.decoding import ROWS, decoding_nodes, find_selection
from graphprune.verification.distance import UNLIKE
from graphprune.verification.model_runner import open_runner
from graphprune.verification.numbers import Numbers

__all__ = ["FloatEnd", "float_end", "mixed_values"]


@dataclass(frozen=True)
class FloatEnd:
    """The end of a network that stays in float32.

    Attributes:
        nodes: names of its nodes.
        reasons: why, one for each output that it leads to.
    """

    nodes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def float_end(graph: onnx.GraphProto, limits: Mapping[str, float], mixed: Collection[str]) -> FloatEnd:
    """The nodes behind the last layers that lead to an output of unlike parts, or to one that is selected.

    Args:
        graph: every node has a name.
        limits: the largest absolute value of each tensor on the images of the calibration.
        mixed: values known to hold parts of unlike scale from what they hold.
    """
    selection = find_selection(graph, ROWS)
    selected = () if selection is None else selection.outputs
    fronts = () if selection is None else selection.fronts
    literals = {tensor.name: tensor for tensor in graph.initializer}
    nodes: dict[str, None] = {}
    reasons = []
    for output in (value.name for value in graph.output):
        decoding = decoding_nodes(graph, output)
        given = {name for node in decoding for name in node.output}
        joins = next((found for node in decoding if (found := _unlike_inputs(node, limits, literals))), None)
        if output in selected and selection is not None:
            reason = f"'{output}' is what {selection.nodes[0].op_type} selects"
        elif joins is not None:
            reason = f"'{output}' joins parts of unlike scale (up to {joins[0]:.3g} and up to {joins[1]:.3g})"
        elif output in mixed or given & {*fronts} & {*mixed}:
            reason = f"'{output}' has parts of unlike scale"
        else:
            continue
        if decoding:
            nodes.update(dict.fromkeys(node.name for node in decoding))
            reasons.append(reason)
    return FloatEnd(tuple(nodes), tuple(reasons))


def mixed_values(model: onnx.ModelProto, batches: Iterable[Sequence[np.ndarray]]) -> tuple[str, ...]:
    """Names of outputs, and of values that rows are picked from, which hold parts of unlike scale on some samples."""
    content = model.SerializeToString()
    numbers = Numbers.of(content, content)
    runner = open_runner(content, label="the float model", watched=numbers.watched[0])
    distance = numbers.distance()
    for arrays in batches:
        found = numbers.judged(0, *runner.answer(arrays))
        distance.see(found, found, len(arrays[0]) if arrays[0].ndim else 1)
    scales: dict[int, list[float]] = {}
    for part in distance.parts:
        scales.setdefault(part.output, []).append(part.scale)
    names = (*numbers.names, *numbers.inside)
    return tuple(names[at] for at, each in scales.items() if max(each) >= UNLIKE * min(each) > 0)


def _unlike_inputs(
    node: onnx.NodeProto, limits: Mapping[str, float], literals: Mapping[str, onnx.TensorProto]
) -> tuple[float, float] | None:
    """The smallest and the largest limit of what is concatenated, if these are unlike; zeros are like everything."""
    if node.op_type != "Concat":
        return None
    found = [limits.get(name) or _largest(literals.get(name)) for name in node.input]
    known = sorted(limit for limit in found if limit)
    return (known[0], known[-1]) if known and known[-1] >= UNLIKE * known[0] else None


def _largest(tensor: onnx.TensorProto | None) -> float:
    if tensor is None:
        return 0.0
    array = numpy_helper.to_array(tensor)
    return float(np.abs(array).max(initial=0)) if np.issubdtype(array.dtype, np.floating) else 0.0

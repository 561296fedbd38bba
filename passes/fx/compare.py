"""Do two torch models, or two captured graphs, compute the same?"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.errors import VerificationError
from graphprune.passes.fx.analyze import FxFrontEnd
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.outputs import difference


def compare_outputs(reference: list[torch.Tensor], outputs: list[torch.Tensor], tolerance: float, what: str) -> float:
    """The largest difference over all outputs.

    Raises:
        VerificationError: it is above `tolerance`.
    """
    if len(reference) != len(outputs):
        raise VerificationError(f"{what} gives {len(outputs)} outputs, the masked model {len(reference)}")
    worst = max((difference(a, b) for a, b in zip(reference, outputs, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise VerificationError(f"{what} differs from the masked model by {worst:.3g} (allowed {tolerance:g})")
    return worst


class _Recorder(fx.Interpreter):
    """Runs a graph, with other tensors in place of its own where given, and keeps every result by node name."""

    def __init__(self, module: fx.GraphModule, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(module)
        self.tensors = tensors
        self.seen: dict[str, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        return self.tensors[target] if target in self.tensors else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        # operators in place would change what was seen
        self.seen[n.name] = result.clone() if isinstance(result, torch.Tensor) else result
        return result


def first_difference(
    graph: ChannelGraph,
    masked: Mapping[str, torch.Tensor],
    cut: CapturedModule,
    removed: Mask,
    inputs: tuple[Any, ...],
    tolerance: float,
) -> str:
    """Where the cut graph leaves the masked one, as a sentence; empty when it does nowhere.

    Args:
        graph: channel graph of the model before the cut.
        masked: its parameters and buffers with the planned channels at zero.
        cut: the slim graph.
        removed: (G,) the groups that were removed.
        inputs: what to run both with.
        tolerance: largest difference relative to the largest value of a tensor.
    """
    front: FxFrontEnd = graph.front_end
    whole = copy.deepcopy(front.module).eval() if front.module.training else front.module
    before, after = _Recorder(whole, masked), _Recorder(cut, {})
    flat, _ = pytree.tree_flatten((inputs, {}))
    failure = ""
    with torch.no_grad():
        before.run(*flat, enable_io_processing=False)
        try:
            after.run(*flat, enable_io_processing=False)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            failure = next(iter(str(error).splitlines()), type(error).__name__)
    for node in front.module.graph.nodes:
        value = front.env.get(node)
        if node.op != "call_function" or not isinstance(value, Value):
            continue
        where = front.ops[node.name][2].where if node.name in front.ops else node.name
        if node.name not in after.seen:
            if failure:
                return f"node {node.name} ({where}) fails: {failure}"
            continue  # part of a branch that went
        expected, found = before.seen[node.name], after.seen[node.name]
        if not isinstance(expected, torch.Tensor):
            continue
        for dim, kept in graph.cuts(value, removed).items():
            # A dimension that the batch is folded into is longer or shorter for another batch than the graph's.
            mask = np.resize(kept, expected.shape[dim])
            expected = expected.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
        worst = difference(expected, found)
        if not worst <= tolerance:
            return (
                f"they differ first at node {node.name} ({where}): by {worst:.3g}, allowed {tolerance:g}; "
                f"shapes {tuple(expected.shape)} and {tuple(found.shape)}"
            )
    return failure

"""The torch network of an example."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphprune.passes.channels.labels import Mask
from graphprune.passes.channels.value import Value
from graphprune.passes.fx.analyze import FxFrontEnd, analyze
from graphprune.passes.fx.capture import capture
from graphprune.passes.fx.captured import CapturedModule
from graphprune.passes.fx.cut import cut_graph, named_tensors
from graphprune.passes.fx.slim import mask, slim
from graphprune.testing.network import Applied, Arrays, Network


class TorchNetwork(Network):
    """A module with the inputs that it is called with."""

    vocabulary = "torch"

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.module = copy.deepcopy(module).eval()
        self.inputs = tuple(inputs)
        self.captured = capture(self.module, self.inputs)
        self.graph = analyze(self.captured)

    def weights(self) -> Mapping[str, NDArray[Any]]:
        """See `Network`."""
        return {name: tensor.detach().numpy() for name, tensor in named_tensors(self.captured).items()}

    def applied(self, rule: str) -> list[Applied]:
        """See `Network`."""
        front: FxFrontEnd = self.graph.front_end
        nodes = {node.name: node for node in self.captured.graph.nodes}
        found = []
        for name, (held, _, op) in front.ops.items():
            if held.name == rule:
                value = front.env[nodes[name]]
                results = value if isinstance(value, list) else [value]
                found.append(Applied(op, (name,), tuple(v for v in results if isinstance(v, Value))))
        return found

    def dense(self) -> Arrays:
        """See `Network`."""
        return _run(self.module, self.inputs)

    def masked(self, removed: Mask, names: Sequence[str]) -> tuple[Arrays, dict[str, NDArray[Any]]]:
        """See `Network`."""
        masked = mask(self.captured, self.graph.plan(removed))
        assert isinstance(masked, CapturedModule)
        with torch.no_grad():
            outputs, taps = masked.with_taps(names)(*self.inputs)
        single = {name: tap.numpy() for name, tap in zip(names, taps, strict=True) if isinstance(tap, Tensor)}
        return _arrays(outputs), single

    def cut(self, removed: Mask) -> Mapping[str, Arrays]:
        """See `Network`: as a captured graph, and as what `slim` makes of the module."""
        plan = self.graph.plan(removed)
        captured = cut_graph(self.graph, plan, removed, named_tensors(self.captured))
        found = {"captured": _run(captured, self.inputs)}
        found["slim"] = _run(slim(self.module, plan, self.inputs, graph=self.graph), self.inputs)
        return found


def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Arrays:
    with torch.no_grad():
        return _arrays(module(*inputs))


def _arrays(outputs: Any) -> Arrays:
    return [leaf.numpy() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

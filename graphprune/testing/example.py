"""Small networks that a rule is tried out on, and their groups written out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What stands in for onnxruntime's kernel of an operator: arrays and attributes -> an array, or a tuple of them.
Kernel = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Example:
    """A small network with the operator, and what is expected of its channels.

    Its weights must be such that one channel differs from another: see `randomize`.

    Attributes:
        module: as a torch module in inference mode.
        inputs: what it is called with.
        onnx: as an ONNX model, or a file. Weights that the module has too go by the same names.
        feeds: inputs of the ONNX model by name; by default those of the module in their order.
        groups: every group of coupled channels, as `written_out` writes them, in any order; of the module, if there
            is one.
        refused: part of the reason why channels around the operator stay, for a form that the rule refuses.
        kernels: operator `com.example::Op` -> what computes it in numpy, where onnxruntime has no kernel. With any, the
            ONNX model is run by onnx's reference implementation.
    """

    module: "nn.Module | None" = None
    inputs: "Sequence[Tensor]" = ()
    onnx: ModelProto | str | os.PathLike[str] | None = None
    feeds: Mapping[str, np.ndarray] | None = None
    groups: Sequence[str] | None = None
    refused: str | None = None
    kernels: Mapping[str, Kernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: UsageError: there is no network, or nothing is expected of it."""
        if self.module is None and self.onnx is None:
            raise UsageError("an example needs a network: give module= with inputs=, or onnx= with feeds=, or both")
        if self.module is not None and not self.inputs:
            raise UsageError("an example with a module needs inputs= that it is called with")
        if self.module is None and self.feeds is None:
            raise UsageError("an example of an ONNX model alone needs feeds=, its inputs by name")
        if self.groups is None and self.refused is None:
            raise UsageError("an example needs groups= or refused=: say what is expected of its channels")


def written_out(graph: ChannelGraph) -> list[str]:
    """Every group of coupled channels: "parameter/dimension[indices] ...", members in the order of the parameters.

    Example:
        >>> written_out(gp.trace(net, inputs))
        ['first.weight/0[0] first.bias/0[0] last.weight/1[0]', 'first.weight/0[1] first.bias/0[1] last.weight/1[1]']
    """
    return [" ".join(members_of(graph, index)) for index in range(graph.n_groups)]


def members_of(graph: ChannelGraph, group: int) -> list[str]:
    """The members of one group, written out."""
    members = graph.groups[group].members
    return [f"{m.parameter}/{m.dim}[{','.join(map(str, m.indices))}]" for m in members]


def randomize(module: "nn.Module", seed: int = 0) -> "nn.Module":
    """The module with numbers that make every channel differ from every other, and every term count; in inference mode.

    Zeros, ones and equal slopes hide mistakes. Parameters and floating buffers change in place: what scales or is a
    variance becomes positive, weights keep the scale of what they are summed to.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for owner in module.modules():
            owned = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
            for name, tensor in owned:
                if not tensor.is_floating_point():
                    continue
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                if "var" in name or (tensor.dim() == 1 and name == "weight"):
                    noise = 0.5 + noise.abs()
                elif tensor.dim() > 1:
                    noise = noise / math.sqrt(max(1, tensor[0].numel()))
                tensor.copy_(noise)
    return module.eval()

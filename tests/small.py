"""Small networks in two lines: in torch as a function of layers, in ONNX as a list of nodes on the same weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from graphprune.testing import randomize

#: Operator (of another domain `com.example::Op`), names of its inputs, of its results, attributes.
Node = tuple[str, str, str, Mapping[str, Any]]


class Net(nn.Module):
    """Layers and parameters by name, and what is done with them; every number random."""

    def __init__(self, function: Callable[["Net", Tensor], Any], /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))
        randomize(self)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def image(*shape: int) -> tuple[Tensor]:
    """An input."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


def onnx_of(
    weights: nn.Module | Mapping[str, np.ndarray],
    inputs: Sequence[Tensor],
    *nodes: Node,
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 18,
    **literals: Any,
) -> onnx.ModelProto:
    """Nodes from "x" to "out" on weights that go by their names in the module."""
    if isinstance(weights, nn.Module):
        weights = {name: tensor.numpy() for name, tensor in weights.state_dict().items()}
    held = {**weights, **{name: np.asarray(array) for name, array in literals.items()}}
    made, domains = [], {"": opset}
    for number, (kind, read, given, attributes) in enumerate(nodes):
        domain, _, kind = kind.rpartition("::")
        domains.setdefault(domain, 1)
        made.append(
            helper.make_node(kind, read.split(), given.split(), name=f"node_{number}", domain=domain, **attributes)
        )
    used = {name for node in made for name in node.input}
    (x,) = inputs
    graph = helper.make_graph(
        made,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *x.shape[1:]])],
        [helper.make_value_info("out", helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))],
        [numpy_helper.from_array(array, name) for name, array in held.items() if name in used],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def each(count: int, *members: str) -> list[str]:
    """A group for each index: `each(2, "a/0", "b/1")` is a/0[0] b/1[0] and a/0[1] b/1[1]."""
    return [" ".join(f"{member}[{index}]" for member in members) for index in range(count)]

"""Moving captured graphs between devices."""

from typing import Any, TypeVar

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

__all__ = ["CPU", "device_of", "inputs_on", "to_device"]

CPU = torch.device("cpu")


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the parameters and buffers of a module are; the CPU if it has none."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else CPU


def inputs_on(device: torch.device, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of a network with their tensors on `device`."""
    moved: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
    return moved


_Graph = TypeVar("_Graph", bound=fx.GraphModule)


def to_device(module: _Graph, device: torch.device) -> _Graph:
    """Move parameters, buffers, constants, and the tensors that the graph makes itself, in place; returns `module`."""
    module.to(device)
    changed = False
    for node in module.graph.nodes:
        if node.op == "get_attr":
            _move_constant(module, str(node.target), device)
        if node.op == "call_function":
            args, kwargs = (map_aggregate(part, lambda leaf: _moved(leaf, device)) for part in (node.args, node.kwargs))
            if (args, kwargs) != (node.args, node.kwargs):
                node.args, node.kwargs, changed = args, kwargs, True
    if changed:
        module.recompile()
    return module


def _moved(leaf: Any, device: torch.device) -> Any:
    return device if isinstance(leaf, torch.device) else leaf


def _move_constant(module: fx.GraphModule, target: str, device: torch.device) -> None:
    """A tensor that is an attribute and no buffer, which `Module.to` passes by."""
    *path, leaf = target.split(".")
    owner = module.get_submodule(".".join(path))
    held = vars(owner).get(leaf)
    if isinstance(held, torch.Tensor):
        setattr(owner, leaf, held.to(device))

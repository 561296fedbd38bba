"""Rules by the operators of captured graphs."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from graphprune.passes.channels.analysis import Binding, Rule
from graphprune.passes.channels.rules import TABLE


def find_rule(target: Any) -> tuple[Rule, Binding] | None:
    """The rule of a torch operator: by overload (`max.other`) first, then by name; ATen's in-place forms alike."""
    return TABLE.torch_rule(*_keys(target)) if isinstance(target, torch._ops.OpOverload) else None


@cache
def _keys(target: torch._ops.OpOverload) -> tuple[str, str]:
    """What an operator goes by in the table: its overload, and all of its overloads."""
    name = target._schema.name
    if target.namespace == "aten":
        name = name.removeprefix("aten::")
        if name.endswith("_") and not name.startswith("__"):
            name = name.removesuffix("_")
    return f"{name}.{target._overloadname}", name


def spelling(target: Any, binding: Binding) -> Mapping[str, str]:
    """The rule's name of each argument of an operator that goes by another name in its schema."""
    return _spelling(target, binding.inputs, tuple(binding.names.items()))


@cache
def _spelling(target: Any, inputs: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    ours = {theirs: own for own, theirs in names}
    schema = getattr(target, "_schema", None)
    tensors = [] if schema is None else [a.name for a in schema.arguments if _holds_tensors(a)]
    for position, theirs in enumerate(tensors if inputs else []):
        own = inputs[min(position, len(inputs) - 1)]
        if position < len(inputs) or own.endswith("..."):
            ours.setdefault(theirs, own)
    return ours


def _holds_tensors(argument: Any) -> bool:
    return "Tensor" in str(argument.type)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What writes registered operators in ONNX files: operator -> function, for all that Python knows by now."""
    found: dict[Callable[..., Any], Callable[..., Any]] = {}
    for key, (_, binding) in TABLE.aten.items():
        if binding.to_onnx is None:
            continue
        library, _, name = key.rpartition("::")
        name, _, overload = name.partition(".")
        packet = getattr(getattr(torch.ops, library or "aten"), name, None)
        for each in () if packet is None else packet.overloads():
            if overload in ("", each):
                found[getattr(packet, each)] = binding.to_onnx
    return found

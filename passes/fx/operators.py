"""Rules by the operators of captured graphs."""

from functools import cache
from typing import Any

import torch

from graphprune.passes.channels.analysis import Binding, Rule
from graphprune.passes.channels.rules import ATEN


@cache
def find_rule(target: Any) -> tuple[Rule, Binding] | None:
    """The rule of an ATen operator: by overload (`max.other`) first, then by name; in-place forms alike."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    if name.endswith("_") and not name.startswith("__"):
        name = name.removesuffix("_")
    return ATEN.get(f"{name}.{target._overloadname}") or ATEN.get(name)

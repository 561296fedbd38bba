"""Layers that keep all their output channels, and linear ones all their weights, by patterns of their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from graphprune.passes.channels.names import paths_to
from graphprune.passes.errors import PlanError

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["frozen_groups", "named", "patterns_of"]


def patterns_of(freeze: str | Sequence[str]) -> tuple[str, ...]:
    """The patterns of the setting, of which a single one may come without a list around it."""
    return (freeze,) if isinstance(freeze, str) else tuple(freeze)


def frozen_groups(graph: "ChannelGraph", patterns: Sequence[str]) -> np.ndarray:
    """(n_groups,) mask of the groups that are output channels of a module, parameter or node so named.

    Args:
        graph: the channel groups.
        patterns: as in `layer1.*`.

    Raises:
        PlanError: nothing has a name that fits one of the patterns.
    """
    mask = np.zeros(graph.n_groups, dtype=bool)
    produced = _output_groups(graph) if patterns else {}
    for pattern in patterns:
        for name in named(graph, pattern):
            # What is computed from the parameter in a way that hides its output channels keeps all it touches.
            touched = [ids for (other, _), ids in graph.axes.items() if other == name]
            for ids in produced.get(name, touched):
                mask[ids[ids >= 0]] = True
    return mask


def named(graph: "ChannelGraph", pattern: str) -> list[str]:
    """The parameters whose name, or that of a module around them, fits a pattern; in files, those of nodes so named.

    Raises:
        PlanError: there are none.
    """
    names = [name for name in graph.shapes if _fits(name, pattern)]
    for node, (_, _, op) in graph.front_end.ops.items():
        if not isinstance(node, str) and node.name and _fits(node.name, pattern):
            names += [value.parameter for value in op.values() if value.parameter is not None]
    if not names:
        raise PlanError(f"freeze: nothing is named {pattern!r}; see `graphprune inspect` for the names of layers")
    return list(dict.fromkeys(names))


def _fits(name: str, pattern: str) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths_to(name))


def _output_groups(graph: "ChannelGraph") -> dict[str, list[np.ndarray]]:
    """Parameter -> group of each channel of the values that are computed with it at once."""
    found: dict[str, list[np.ndarray]] = {}
    for node, (_, _, op) in graph.front_end.ops.items():
        result = node if isinstance(node, str) else node.outputs[0].name
        if result not in graph.value_groups:
            continue
        for value in op.values():
            if value.parameter is not None:
                found.setdefault(value.parameter, []).append(graph.value_groups[result][1])
    return found

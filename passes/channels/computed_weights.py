"""Weights that a network computes from its parameters alone, as its layers read them: masked, normalized, dequantized.

How much a channel is worth shows in the weight that a layer computes with, not in a mask of ones or a direction beside
it. Both front ends find such weights here; each evaluates its own graph.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.sets import Ids
from graphprune.passes.channels.value import Value

__all__ = ["ComputedWeights", "collect"]

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class ComputedWeights:
    """What layers read that is neither a parameter nor depends on the input.

    Attributes:
        arrays: by a name of their own.
        axes: (name, dimension) -> group of each index, as in `ChannelGraph.axes`.
        sources: parameters that nothing else is made of, and that no layer reads as they are.
    """

    arrays: Mapping[str, Any]
    axes: Mapping[tuple[str, int], Ids]
    sources: frozenset[str]


def collect(
    graph: ChannelGraph,
    read: Iterable[tuple[_Key, str, Value]],
    evaluate: Callable[[_Key, set[str]], Any],
    used_as_they_are: Callable[[str], bool],
) -> ComputedWeights:
    """The computed weights among what layers read.

    Args:
        graph: channel graph.
        read: constant operands of operators whose results are not: key of the front end, name, what is known of it.
        evaluate: the numbers of a value, with the names of the parameters that it reads added to a set; None where
            they cannot be told, or are no real ones.
        used_as_they_are: is a parameter read by such an operator itself?
    """
    arrays: dict[str, Any] = {}
    axes: dict[tuple[str, int], Ids] = {}
    sources: set[str] = set()
    unknown: set[str] = set()
    for key, name, value in read:
        label = f"{name} (computed)"
        if label in arrays or not value.facets or any(len(facet.dims) != 1 for facet in value.facets):
            continue
        own: set[str] = set()
        numbers = evaluate(key, own)
        if numbers is None:
            unknown |= own
            continue
        arrays[label] = numbers
        sources |= own
        for facet in value.facets:
            axes[label, facet.dims[0]] = np.asarray(graph.ids_of(facet).ravel(), dtype=np.int64)
    return ComputedWeights(arrays, axes, frozenset(n for n in sources - unknown if not used_as_they_are(n)))

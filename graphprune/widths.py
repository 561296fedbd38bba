"""Lengths of tensor dimensions as functions of how many channels each set keeps.

    n(w) = fixed + sum over sets s of  each_s * w_s

Groups of one set have the same members, so a set's width alone says how long every dimension is that it runs through;
what a layer costs (its time, its multiply-accumulates) is a function of such lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from graphprune.passes.channels.graph import ChannelGraph

__all__ = ["Axis", "axis_of", "set_widths"]


@dataclass(frozen=True)
class Axis:
    """Length of a dimension: `fixed` indices that always stay, and `each` indices for every group kept of a set.

    Attributes:
        fixed: indices that cannot be removed.
        terms: (index of a set, indices for one of its groups), by index.
    """

    fixed: float
    terms: tuple[tuple[int, float], ...]

    def length(self, widths: Sequence[float] | np.ndarray) -> float:
        """Its length when set s keeps `widths[s]` groups."""
        return self.fixed + sum(each * float(widths[index]) for index, each in self.terms)

    def gone(self, widths: Sequence[float] | np.ndarray) -> bool:
        """Whether nothing of it is left."""
        return self.length(widths) < 0.5

    def to_list(self) -> list:
        """Plain data for JSON."""
        return [self.fixed, [list(term) for term in self.terms]]


def axis_of(ids: np.ndarray, set_of: np.ndarray, sizes: np.ndarray, counts: np.ndarray | None = None) -> Axis:
    """The axis along which index i belongs to group `ids[i]` (-1: stays in any case).

    Shapes: set_of (n_groups,), sizes (n_sets,) number of groups, counts (n_indices,) what each index counts, by
        default 1. Where that differs, a group counts as much as they do in the mean of its set.
    """
    counts = np.ones(len(ids)) if counts is None else counts
    moves = ids >= 0
    sets = set_of[ids[moves]]
    total = np.bincount(sets, weights=counts[moves], minlength=len(sizes))
    terms = tuple((int(index), float(total[index]) / float(sizes[index])) for index in np.unique(sets))
    return Axis(float(counts[~moves].sum()), terms)


def set_widths(graph: "ChannelGraph", kept: np.ndarray) -> np.ndarray:
    """(n_sets,) groups that each set keeps."""
    return np.bincount(graph.set_of[kept], minlength=len(graph.sets))

"""Reading a settled analysis: group ids of many arrays of labels at once, and groups sorted into sets.

A model has thousands of small arrays of labels. They are laid end to end and looked up in one go; what is asked
of each of them is then a sum or a minimum over its part, so there is no loop over groups and hardly one over arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from graphprune.passes.channels.labels import Labels, LabelSpace, Mask
from graphprune.passes.channels.names import layer_of
from graphprune.passes.channels.segments import Segments
from graphprune.passes.channels.value import Facet

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class GroupSet:
    """Groups of the same structure: the channels of a layer, or of all layers that a residual trunk couples.

    Attributes:
        index: number of the set in its graph.
        name: the first layer that produces these channels.
        groups: ids of its groups.
        members: (parameter, dimension, indices per group) that every group of the set has.
        outputs: those of the members that are output channels of a layer.
        bypassed: the whole set may go, because a branch around it exists.
    """

    index: int
    name: str
    groups: Ids
    members: tuple[tuple[str, int, int], ...]
    outputs: tuple[tuple[str, int, int], ...] = ()
    bypassed: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers of which output channels belong to the set, in order."""
        names = [layer_of(p) for p, _, _ in self.outputs]
        return tuple(dict.fromkeys(names))


def group_ids(axes: Mapping[tuple[str, int], Labels], space: LabelSpace) -> tuple[Ids, int]:
    """Label -> group id, -1 where it cannot be removed; groups are numbered in the order in which they occur."""
    every = Segments(list(axes.values()))
    roots = space.find(every.values)
    free = roots[space.frozen(roots) < 0]
    first = np.full(len(space), len(free), dtype=np.int64)
    np.minimum.at(first, free, np.arange(len(free)))
    ids = np.full(len(space), -1, dtype=np.int64)
    found = np.flatnonzero(first < len(free))
    ids[found[np.argsort(first[found])]] = np.arange(len(found))
    return ids[space.find(np.arange(len(space)))], len(found)


class FacetTable:
    """The channels of all values of a model: for each facet, groups, sets, whether it can be cut as a whole."""

    def __init__(self, facets: Iterable[Facet], ids_of: Ids) -> None:
        """`ids_of`: label -> group id, -1 where it cannot be removed."""
        arrays = {id(facet.labels): facet.labels for facet in facets if facet.labels.size}
        self._row = {key: row for row, key in enumerate(arrays)}
        self._arrays = list(arrays.values())  # holds them, so that ids stay theirs
        self._segments = Segments(self._arrays)
        self._ids: Ids = ids_of[self._segments.values]
        self.whole: Mask = self._segments.least(self._ids) >= 0

    def __len__(self) -> int:
        return len(self._arrays)

    def row(self, facet: Facet) -> int | None:
        """The row of a facet; None where it has no elements."""
        return self._row.get(id(facet.labels))

    def groups(self, n_groups: int) -> csr_matrix:
        """(facets, groups): how many elements a group has in a facet."""
        return self._segments.counts(self._ids, n_groups)

    def owners(self, set_of: Ids) -> list[frozenset[int]]:
        """The sets that each facet has channels of."""
        number = int(set_of.max(initial=-1)) + 1
        of = np.append(set_of, -1)[self._ids]
        table = self._segments.counts(of, max(number, 1))
        bounds, columns = table.indptr.tolist(), table.indices.tolist()
        return [frozenset(columns[start:end]) for start, end in pairwise(bounds)]


def sort_into_sets(
    axes: Mapping[tuple[str, int], Ids],
    n_groups: int,
    facets: FacetTable,
    shapes: Mapping[str, tuple[int, ...]],
    output_dims: Mapping[str, int],
) -> tuple[Ids, list[GroupSet]]:
    """Set of each group, and the sets: groups whose members are the same slices, counted, are of one.

    Equality is told by a sum of pseudo-random numbers, one for each (axis, count): no loop over groups.
    """
    if not n_groups:
        return np.empty(0, dtype=np.int64), []
    every = Segments(list(axes.values()))
    counts = every.counts(every.values, n_groups)
    number = np.repeat(np.arange(1, len(every) + 1, dtype=np.uint64), np.diff(counts.indptr))
    mixed = number * np.uint64(0x9E3779B97F4A7C15) ^ counts.data.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    signature = np.zeros(n_groups, dtype=np.uint64)
    np.add.at(signature, counts.indices, mixed)
    set_of = _anchored(_in_order(signature), facets)
    by_set = np.argsort(set_of, kind="stable")
    bounds = np.searchsorted(set_of[by_set], np.arange(int(set_of.max()) + 2)).tolist()
    by_group = counts.tocsc()
    keys = list(axes)
    sets = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        one = slice(*by_group.indptr[by_set[start] : by_set[start] + 2])
        held = zip(by_group.indices[one].tolist(), by_group.data[one].tolist(), strict=True)
        members = tuple((*keys[axis], count) for axis, count in sorted(held))
        outputs = tuple(m for m in members if m[1] == output_dims.get(m[0], 0))
        sets.append(GroupSet(index, _name(members, outputs, shapes), by_set[start:end], members, outputs))
    return set_of, sets


def _in_order(signature: NDArray) -> Ids:
    """Equal numbers get the same index, counted in the order in which they occur."""
    unique, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.empty(len(unique), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(unique))
    return rank[inverse.ravel()]


def _anchored(set_of: Ids, facets: FacetTable) -> Ids:
    """Split sets until every tensor holds a whole one, so that keeping a group of each set empties no tensor.

    Two halves of a layer that differ in nothing but an operator without parameters are such a case. A tensor that
    holds a whole set holds one after any split, so only the others are looked at one by one.
    """
    groups = facets.groups(len(set_of))
    groups.data = np.ones_like(groups.data)
    number = int(set_of.max()) + 1
    one_of = csr_matrix((np.ones_like(set_of), (np.arange(len(set_of)), set_of)), shape=(len(set_of), number))
    inside = (groups @ one_of).tocsr()
    held = inside.data == np.bincount(set_of)[inside.indices]
    holds = np.zeros(len(facets), dtype=np.bool_)
    holds[np.repeat(np.arange(len(facets)), np.diff(inside.indptr))[held]] = True
    set_of = set_of.copy()
    for row in np.flatnonzero(facets.whole & ~holds):
        own = groups.indices[groups.indptr[row] : groups.indptr[row + 1]]
        sizes = np.bincount(set_of)
        count = np.bincount(set_of[own], minlength=len(sizes))
        if not ((count == sizes) & (count > 0)).any():
            set_of[own[set_of[own] == count.argmax()]] = len(sizes)
    return np.unique(set_of, return_inverse=True)[1].ravel().astype(np.int64)


def _name(
    members: Sequence[tuple[str, int, int]],
    outputs: Sequence[tuple[str, int, int]],
    shapes: Mapping[str, tuple[int, ...]],
) -> str:
    layered = [name for name, _, _ in outputs if len(shapes[name]) > 1]
    first = layered[0] if layered else members[0][0]
    return first.removesuffix(".weight")

"""A union-find over integer labels, vectorized.

Every channel of every tensor is named by a label; channels that can only be removed together are
united. Arrays of labels are united in one call: the roots that meet are linked with one
connected-components pass (SciPy), so no Python loop ever runs over channels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Reason index of labels that name no channel at all (kernel positions, tokens, ...). Not reported.
PINNED = 0


class LabelSpace:
    """Labels 0, 1, 2, ... in classes that grow by `unite`; a class may be frozen, with a reason."""

    def __init__(self) -> None:
        self._parent: Labels = np.arange(1024, dtype=np.int64)
        self._frozen: Labels = np.full(1024, -1, dtype=np.int64)
        self._size = 0
        self.reasons: list[str] = ["not a channel"]

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> Labels:
        """`count` new labels, each in a class of its own."""
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            capacity = max(2 * len(self._parent), self._size)
            grown = np.arange(capacity, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
            frozen = np.full(capacity, -1, dtype=np.int64)
            frozen[: len(self._frozen)] = self._frozen
            self._frozen = frozen
        return np.arange(start, self._size, dtype=np.int64)

    def find(self, labels: Labels) -> Labels:
        """The representative of the class of each label; same shape."""
        parent = self._parent
        roots = parent[labels]
        while True:
            above = parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def unite(self, left: Labels, right: Labels) -> None:
        """Merge the classes that meet at each position of two arrays (broadcast against each other)."""
        left, right = np.broadcast_arrays(self.find(left), self.find(right))
        differ = left != right
        if not differ.any():
            return
        a, b = left[differ], right[differ]
        roots, index = np.unique(np.concatenate([a, b]), return_inverse=True)
        edges = coo_matrix(
            (np.ones(len(a), dtype=np.int8), (index[: len(a)], index[len(a) :])), shape=(len(roots),) * 2
        )
        count, component = connected_components(edges, directed=False)
        # roots are sorted, so the first of each component is its smallest label: the new root
        first = np.full(count, -1, dtype=np.int64)
        first[component[::-1]] = np.arange(len(roots))[::-1]
        new_root = roots[first[component]]
        self._parent[roots] = new_root
        reason = self._frozen[roots]
        if (reason >= 0).any():
            # the most telling reason survives: a reported one over PINNED, the earliest of those
            rank = np.where(reason > PINNED, -reason, np.where(reason == PINNED, -(1 << 40), -(1 << 50)))
            best = np.full(count, -(1 << 50), dtype=np.int64)
            np.maximum.at(best, component, rank)
            merged = np.where(best == -(1 << 50), -1, np.where(best == -(1 << 40), PINNED, -best))
            self._frozen[new_root] = merged[component]

    def freeze(self, labels: Labels, reason: str | None) -> None:
        """Forbid the removal of the classes of `labels`; the first reason given is the one that is kept.

        Args:
            labels: any shape.
            reason: what the user is told, or None for labels that name no channel (not reported).
        """
        if labels.size == 0:
            return
        roots = np.unique(self.find(labels))
        index = PINNED
        if reason is not None:
            if reason not in self.reasons:
                self.reasons.append(reason)
            index = self.reasons.index(reason)
        current = self._frozen[roots]
        free = (current < 0) if index == PINNED else (current <= PINNED)
        self._frozen[roots[free]] = index

    def frozen(self, labels: Labels) -> Labels:
        """Index into `reasons` for each label, or -1 where removal is allowed; same shape."""
        return self._frozen[self.find(labels)]

    def varies(self, labels: Labels) -> tuple[int, ...]:
        """The dimensions along which an array's classes differ."""
        if labels.size <= 1:
            return ()
        roots = self.find(labels)
        return tuple(
            dim
            for dim in range(roots.ndim)
            if roots.shape[dim] > 1 and not np.array_equal(roots[_head(dim)], roots[_tail(dim)])
        )

    def compress(self) -> None:
        """Point every label straight at its root: makes later look-ups one step."""
        used = self._parent[: self._size]
        used[:] = self.find(used)


def _head(dim: int) -> tuple[slice, ...]:
    return (slice(None),) * dim + (slice(0, -1),)


def _tail(dim: int) -> tuple[slice, ...]:
    return (slice(None),) * dim + (slice(1, None),)


def keep_dims(array: NDArray, dims: Sequence[int]) -> NDArray:
    """`array` cut to its first entry along every dimension that is not in `dims`.

    Example:
        >>> keep_dims(np.zeros((4, 3, 5)), (1,)).shape  # 4 and 5 become 1
        (1, 3, 1)
    """
    return array[tuple(slice(None) if dim in dims else slice(0, 1) for dim in range(array.ndim))]

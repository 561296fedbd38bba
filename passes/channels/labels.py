"""A union-find over integer labels, vectorized.

Every channel of every tensor is named by a label; channels that can only be removed together are
united. Arrays of labels are united in one call: all the roots that meet are linked at once, in a few
rounds, so no Python loop ever runs over channels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Reason index of labels that name no channel at all (kernel positions, tokens, ...). Not reported.
PINNED = 0
#: How a class notes its reason: the smaller of two survives a union, so a reported reason wins over PINNED.
_FREE_CODE, _PINNED_CODE = 1 << 62, 1 << 61


class LabelSpace:
    """Labels 0, 1, 2, ... in classes that grow by `unite`; a class may be frozen, with a reason."""

    def __init__(self) -> None:
        self._parent: Labels = np.arange(1024, dtype=np.int64)
        self._reason: Labels = np.full(1024, _FREE_CODE, dtype=np.int64)
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
            reason = np.full(capacity, _FREE_CODE, dtype=np.int64)
            reason[: len(self._reason)] = self._reason
            self._reason = reason
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
        linked = []
        while True:
            differ = left != right
            if not differ.any():
                break
            left, right = left[differ], right[differ]
            upper = np.maximum(left, right)
            # every larger root now points at the smallest root it meets; what else it meets comes next round
            np.minimum.at(self._parent, upper, np.minimum(left, right))
            linked.append(upper)
            left, right = self.find(left), self.find(right)
        for roots in linked:
            np.minimum.at(self._reason, self.find(roots), self._reason[roots])

    def freeze(self, labels: Labels, reason: str | None) -> None:
        """Forbid the removal of the classes of `labels`; the first reason given is the one that is kept.

        Args:
            labels: any shape.
            reason: what the user is told, or None for labels that name no channel (not reported).
        """
        if labels.size == 0:
            return
        code = _PINNED_CODE
        if reason is not None:
            if reason not in self.reasons:
                self.reasons.append(reason)
            code = self.reasons.index(reason)
        np.minimum.at(self._reason, self.find(labels).ravel(), code)

    def frozen(self, labels: Labels) -> Labels:
        """Index into `reasons` for each label, or -1 where removal is allowed; same shape."""
        code = self._reason[self.find(labels)]
        return np.where(code == _FREE_CODE, -1, np.where(code == _PINNED_CODE, PINNED, code))

    def among(self, labels: Labels, others: Sequence[Labels]) -> Mask:
        """Which labels are of a class that one of `others` is of; shape of `labels`."""
        mark = np.zeros(self._size, dtype=np.bool_)
        for array in others:
            mark[self.find(array)] = True
        return mark[self.find(labels)]

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

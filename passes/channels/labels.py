"""A union-find over integer labels, vectorized.

Every channel of every tensor is named by a label; channels that can only be removed together are
united. Arrays of labels are united in one call: all the roots that meet are linked at once, in a few
rounds, so no Python loop ever runs over channels.
"""

from collections.abc import Sequence
from typing import Any

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
        self._mark: Mask = np.zeros(1024, dtype=np.bool_)
        self._size = 0
        self._is_flat = True  # every label points straight at its root
        self._index_of: dict[str, int] = {}
        self.reasons: list[str] = ["not a channel"]
        #: Grows whenever classes are merged.
        self.unions = 0

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
            self._mark = np.zeros(capacity, dtype=np.bool_)
        return np.arange(start, self._size, dtype=np.int64)

    def find(self, labels: Labels) -> Labels:
        """The representative of the class of each label; same shape."""
        parent = self._parent
        roots: Labels = parent.take(labels)  # faster than an index, for short arrays
        while not self._is_flat:
            above = parent.take(roots)
            if not np.count_nonzero(above != roots):  # of all ways to ask this, the fastest for short arrays
                break
            roots = above
        return roots

    def unite(self, left: Labels, right: Labels) -> None:
        """Merge the classes that meet at each position of two arrays (broadcast against each other)."""
        left, right = self.find(left), self.find(right)
        linked = []
        differ = left != right
        while np.count_nonzero(differ):
            left, right = np.broadcast_to(left, differ.shape)[differ], np.broadcast_to(right, differ.shape)[differ]
            upper, lower = np.maximum(left, right), np.minimum(left, right)
            # Every larger root now points at one smaller root that it meets ...
            self._parent[upper] = lower
            self._is_flat = False
            linked.append(upper)
            other = self._parent[upper] != lower
            if not np.count_nonzero(other):
                break
            # ... at the smallest, if it meets several; what else it meets comes next round.
            np.minimum.at(self._parent, upper[other], lower[other])
            left, right = self.find(left), self.find(right)
            differ = left != right
        self.unions += len(linked)
        for roots in linked:
            codes = self._reason.take(roots)
            if np.count_nonzero(codes != _FREE_CODE):
                np.minimum.at(self._reason, self.find(roots), codes)

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
            code = self._index_of.setdefault(reason, len(self.reasons))
            if code == len(self.reasons):
                self.reasons.append(reason)
        np.minimum.at(self._reason, self.find(labels).ravel(), code)

    def frozen(self, labels: Labels) -> Labels:
        """Index into `reasons` for each label, or -1 where removal is allowed; same shape."""
        code = self._reason[self.find(labels)]
        return np.where(code == _FREE_CODE, -1, np.where(code == _PINNED_CODE, PINNED, code))

    def are_pinned(self, roots: Labels) -> bool:
        """Do none of these name a channel? Takes what `find` gave."""
        return not np.count_nonzero(self._reason[roots] != _PINNED_CODE)

    def among(self, labels: Labels, others: Labels) -> Mask:
        """Which labels are of a class that one of `others` is of; shape of `labels`."""
        marked = self.find(others)
        self._mark[marked] = True
        found = self._mark[self.find(labels)]
        self._mark[marked] = False
        return found

    def varies(self, labels: Labels) -> tuple[int, ...]:
        """The dimensions along which an array's classes differ."""
        return varying(self.find(labels))

    def compress(self) -> None:
        """Point every label straight at its root: makes later look-ups one step."""
        used = self._parent[: self._size]
        used[:] = self.find(used)
        self._is_flat = True


def varying(array: NDArray[Any]) -> tuple[int, ...]:
    """The dimensions along which an array's elements differ."""
    long = tuple(dim for dim, size in enumerate(array.shape) if size > 1)
    if len(long) == 1:  # by far the most
        flat = array.ravel()
        return long if np.count_nonzero(flat != flat[0]) else ()
    return tuple(dim for dim in long if np.count_nonzero(array[_head(dim)] != array[_tail(dim)]))


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

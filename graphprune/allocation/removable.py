"""What a policy may remove: groups in blocks, ordered inside their set.

A block is the least that may go from a set at once: one group, or as many as keep the width of the set a multiple
of `align`. Blocks of a set go in order of their scores, lowest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class GroupSetLike(Protocol):
    """Groups of the same structure, such as the inner channels of one residual block."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def groups(self) -> np.ndarray: ...  # noqa: D102

    @property
    def bypassed(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Limits:
    """What must stay, whatever the scores say."""

    min_channels: int = 1
    align: int = 1

    @classmethod
    def of(cls, min_channels: int, align: int | str | None) -> "Limits":
        """The limits of two settings; an `align` that is no number (None, "auto") limits nothing here."""
        return cls(min_channels, align if isinstance(align, int) else 1)


@dataclass(frozen=True)
class Blocks:
    """All blocks of all sets, ordered by set and, inside a set, by the order in which they may go.

    Shapes: block_of (n_groups,), index of the block a group goes with, -1 = stays in any case; set_of (n_blocks,).
    """

    block_of: np.ndarray
    set_of: np.ndarray

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.set_of)

    def total(self, per_group: np.ndarray) -> np.ndarray:
        """Sum over the groups of each block."""
        inside = self.block_of >= 0
        return np.bincount(self.block_of[inside], weights=per_group[inside], minlength=self.count)

    def groups(self, chosen: np.ndarray) -> np.ndarray:
        """Mask of the groups that go when the blocks of the mask `chosen` go."""
        return np.append(chosen, False)[self.block_of]


def removable_groups(sets: Sequence[GroupSetLike], exact: np.ndarray, allow_inexact: bool = False) -> np.ndarray:
    """Mask of the groups that may be removed: members of a set whose removal is exact, or all members."""
    mask = np.zeros(len(exact), dtype=bool)
    for group_set in sets:
        mask[group_set.groups] = True
    return mask if allow_inexact else mask & exact


def make_blocks(scores: np.ndarray, sets: Sequence[GroupSetLike], removable: np.ndarray, limits: Limits) -> Blocks:
    """Blocks of the removable groups, after setting aside what each set must keep."""
    block_of = np.full(len(scores), -1, dtype=np.int64)
    set_of: list[int] = []
    for position, group_set in enumerate(sets):
        groups = group_set.groups[removable[group_set.groups]]
        groups = groups[np.argsort(scores[groups], kind="stable")]
        for block in _split(groups, len(group_set.groups), limits, group_set.bypassed):
            block_of[block] = len(set_of)
            set_of.append(position)
    return Blocks(block_of, np.asarray(set_of, dtype=np.int64))


def _split(groups: np.ndarray, width: int, limits: Limits, bypassed: bool) -> list[np.ndarray]:
    """Cut `groups` (in the order they go) so that the kept width passes through multiples of `align` only.

    What a set keeps at least goes at once, where the set can go as a whole.
    """
    least = max(1, limits.min_channels)
    blocks: list[np.ndarray] = []
    start = 0
    # The first cut brings an odd width down to a multiple; each further one takes `align` groups.
    kept = (width - 1) // limits.align * limits.align
    while width - kept <= len(groups) and kept >= least:
        blocks.append(groups[start : width - kept])
        start = width - kept
        kept -= limits.align
    if bypassed and start < len(groups) == width:
        blocks.append(groups[start:])
    return blocks

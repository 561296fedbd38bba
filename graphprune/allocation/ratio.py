"""Policy "ratio": the same share of channels from every set, the least important first."""

from collections.abc import Sequence

import numpy as np

from graphprune.allocation.removable import GroupSetLike, Limits, make_blocks


def select_ratio(
    scores: np.ndarray,
    ratio: float,
    sets: Sequence[GroupSetLike],
    removable: np.ndarray,
    limits: Limits | None = None,
) -> np.ndarray:
    """Mask of the groups to remove: at most `ratio` of each set's width, in the order of their scores.

    Shapes: scores, removable and the result (n_groups,).
    """
    blocks = make_blocks(scores, sets, removable, limits or Limits())
    sizes = blocks.total(np.ones(len(scores)))
    chosen = np.zeros(blocks.count, dtype=bool)
    for position, group_set in enumerate(sets):
        inside = np.flatnonzero(blocks.set_of == position)
        # A hair of tolerance: 0.3 of 10 channels is 3, although 0.3 * 10 is below 3 in floating point elsewhere.
        chosen[inside] = np.cumsum(sizes[inside]) <= ratio * len(group_set.groups) + 1e-9
    return blocks.groups(chosen)

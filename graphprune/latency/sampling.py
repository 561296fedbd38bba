"""Which widths to measure: the lattice that onnxruntime's kernels like, and allocations that cover it.

Kernels work on blocks of channels, so time is a staircase in every width. Onnxruntime's float32 convolution reads
channels in fours and writes blocks of 8 (AVX2) or 16 (AVX-512): narrow layers are looked at in multiples of 4, wide
ones in multiples of the block.
"""

from collections.abc import Iterator, Sequence
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from graphprune.passes.errors import PlanError
from graphprune.widths import set_widths

if TYPE_CHECKING:
    from graphprune.latency.segments import Segments
    from graphprune.passes.channels.graph import ChannelGraph, GroupSet

__all__ = ["allocations", "lattice", "lattice_of"]

_FEWEST = 4  # channels that kernels read at once
_GONE = 0.15  # share of samples in which a set with a way around it is left out
_TRIALS = 8
_BIAS = (0.15, 2.5)  # exponents of the share of its width that a set gets
_DOUBLING = 3  # widths below even steps


def lattice(width: int, block: int, each: int = 1, most: int | None = None) -> list[int]:
    """Widths of a set that may be worth having, ascending, without 0: its own, and those on the kernels' steps.

    Args:
        width: groups in the set.
        block: channels in a block of the kernels.
        each: channels of a group.
        most: not many more than so many; the steps get wider for it.
    """
    fine = _FEWEST // gcd(_FEWEST, each)
    coarse = max(1, block // gcd(block, each)) if block > 1 else 2 * fine
    found = {n for n in range(fine, width, fine) if n <= 2 * coarse} | set(range(coarse, width, coarse)) | {width}
    if most is not None and len(found) > most:
        # Even steps, and below the first one widths that double.
        step = coarse * -(-width // (coarse * max(1, most - _DOUBLING)))
        found = set(range(step, width, step)) | {width}
        found |= {coarse * 2**k for k in range(_DOUBLING) if coarse * 2**k < step}
    return sorted(found)


def lattice_of(group_set: "GroupSet", block: int, most: int | None = None) -> list[int]:
    """The lattice of a set of groups."""
    each = max((count for _, dim, count in group_set.members if dim == 0), default=1)
    return lattice(len(group_set.groups), block, each, most)


def allocations(
    graph: "ChannelGraph", segments: "Segments", block: int, seed: int, most: int = 10
) -> Iterator[np.ndarray]:
    """Allocations as masks of kept groups: the dense one, then each the one of some random ones that shows most new.

    What an allocation shows are the lengths at which it lets each kind of segment be measured.
    """
    choices = [lattice_of(s, block, most) for s in graph.sets]
    rng = np.random.default_rng(seed)
    seen: set[tuple[str, tuple[float, ...]]] = set()
    kept = graph.all_kept()
    while True:
        seen |= _shown(segments, set_widths(graph, kept))
        yield kept
        trials = [draw(graph, choices, rng) for _ in range(_TRIALS)]
        kept = max(trials, key=lambda trial: len(_shown(segments, set_widths(graph, trial)) - seen))


def draw(graph: "ChannelGraph", choices: Sequence[Sequence[int]], rng: np.random.Generator) -> np.ndarray:
    """A random allocation on the lattice; sometimes branches go as a whole."""
    # Some allocations are small and some large: in a small network all weights stay in the caches.
    bias = float(np.exp(rng.uniform(*np.log(_BIAS))))
    removed = ~graph.all_kept()
    for group_set, widths in zip(graph.sets, choices, strict=True):
        width = widths[min(len(widths) - 1, int(len(widths) * rng.random() ** bias))]
        removed[group_set.groups[width:]] = True
    for group_set in graph.sets:
        if group_set.bypassed and rng.random() < _GONE:
            without = removed.copy()
            without[group_set.groups] = True
            try:
                removed = graph.with_unreached(without)
            except PlanError:  # not together with those that went before
                continue
    return ~removed


def _shown(segments: "Segments", widths: np.ndarray) -> set[tuple[str, tuple[float, ...]]]:
    return {(s.kind, tuple(axis.length(widths) for axis in s.axes)) for s in segments.items if s.axes}

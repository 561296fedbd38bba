"""What of a removal can be proven: the groups whose removal, once they are zero, changes nothing.

The others change a statistic of what stays (a softmax, a layer norm), so a model with zeros in their place computes
something else than the slim one does. Cut without them, it has to compute the same.
"""

import numpy as np

from graphprune.passes.channels.graph import ChannelGraph
from graphprune.passes.channels.labels import Mask


def exact_part(graph: ChannelGraph, removed: Mask) -> Mask:
    """Which of the groups of `removed` can go without the others and change nothing, (G,) bool.

    1. Exact groups. Sets that lose all of them are left out where they may not go without sets that are not exact.
    2. What is computed for nothing once whole branches of those went.
    """
    part: Mask = removed & graph.exact
    emptied = [each for each in graph.sets if part[each.groups].all()]
    if graph.flow.fates(frozenset(each.index for each in emptied)) is None:
        for each in emptied:
            part[each.groups] = False
    return graph.with_unreached(part)


def say_inexact(graph: ChannelGraph, removed: Mask) -> str:
    """How many of the groups of `removed` change what stays, and by which operator; "" where none does."""
    inexact = removed & ~exact_part(graph, removed)
    if not inexact.any():
        return ""
    number, every = int(inexact.sum()), int(removed.sum())
    which = (
        f"none of the {every} removed groups is" if number == every else f"{number} of {every} removed groups are not"
    )
    whys = [why for why in dict.fromkeys(map(graph.why_inexact, np.flatnonzero(inexact).tolist())) if why]
    more = "" if len(whys) < 2 else f", and {len(whys) - 1} others"
    return f"{which} exact ({whys[0]}{more})"

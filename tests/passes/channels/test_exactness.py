"""What of a removal can be proven, and what is said of the rest."""

import numpy as np
import pytest

from graphprune.passes.channels.exactness import exact_part, say_inexact


def mixed(sketch):
    """A plain layer of four channels, then one of three that a softmax runs over."""
    x = sketch.conv(sketch.input(2, 3, 4, 4), "plain", 4)
    x = sketch.conv(sketch.relu(x), "soft", 3)
    x = sketch.call("softmax", (2, 3, 4, 4), input=x, dim=1)
    return sketch.graph(sketch.conv(x, "head", 2))


def groups(graph, name, *indices):
    """The groups of some channels of a layer."""
    removed = np.zeros(graph.n_groups, dtype=bool)
    removed[graph.axes[(f"{name}.weight", 0)][list(indices)]] = True
    return removed


@pytest.mark.parametrize(
    ("plain", "soft", "said"),
    [
        ((0, 2), (1,), "1 of 3 removed groups are not exact (softmax over channels: softmax at line 3)"),
        ((), (0, 1), "none of the 2 removed groups is exact (softmax over channels: softmax at line 3)"),
        ((1, 3), (), ""),
        ((), (), ""),
    ],
)
def test_the_exact_groups_are_those_that_no_statistic_reads(sketch, plain, soft, said):
    graph = mixed(sketch)
    removed = groups(graph, "plain", *plain) | groups(graph, "soft", *soft)
    assert np.array_equal(exact_part(graph, removed), groups(graph, "plain", *plain))
    assert say_inexact(graph, removed) == said


def test_a_branch_that_goes_takes_what_is_computed_for_nothing_with_it(sketch):
    """The layer under the softmax feeds nothing once the inner channels are gone: its removal changes nothing."""
    x = sketch.relu(sketch.conv(sketch.input(2, 3, 4, 4), "stem", 4))
    soft = sketch.call("softmax", (2, 3, 4, 4), input=sketch.conv(x, "soft", 3), dim=1)
    inner = sketch.relu(sketch.conv(soft, "inner", 5))
    y = sketch.call("add", (2, 4, 4, 4), input=x, other=sketch.conv(inner, "outer", 4))
    graph = sketch.graph(sketch.conv(y, "head", 2))
    every = graph.with_unreached(groups(graph, "inner", *range(5)))
    assert every[groups(graph, "soft", 0, 1, 2)].all()
    assert np.array_equal(exact_part(graph, every), every)
    assert say_inexact(graph, every) == ""


def test_a_set_that_needs_an_inexact_one_gone_is_no_part(sketch):
    """Both layers of the branch go as a whole; the first alone has no way around it, for the second would be fed."""
    x = sketch.relu(sketch.conv(sketch.input(2, 3, 4, 4), "stem", 4))
    first = sketch.relu(sketch.conv(x, "first", 5))
    soft = sketch.call("softmax", (2, 3, 4, 4), input=sketch.conv(x, "soft", 3), dim=1)
    joined = sketch.call("cat", (2, 8, 4, 4), tensors=[first, soft], dim=1)
    y = sketch.call("add", (2, 4, 4, 4), input=x, other=sketch.conv(joined, "outer", 4))
    graph = sketch.graph(sketch.conv(y, "head", 2))
    removed = groups(graph, "first", *range(5)) | groups(graph, "soft", *range(3))
    part = exact_part(graph, removed)
    assert graph.plan(part) is not None  # raises where a set has no branch around it
    assert not (part & groups(graph, "soft", *range(3))).any()
    assert say_inexact(graph, removed).endswith("exact (softmax over channels: softmax at line 5)")
